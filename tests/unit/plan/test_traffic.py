"""Bytes that a rank sends, compared with the volumes of the ZeRO paper."""

from __future__ import annotations

import dataclasses

import pytest

from minimind.objective.reference_update import ReferenceUpdate
from minimind.plan.choice import Machine, StepLoad, ZeroChoice
from minimind.plan.traffic import step_traffic
from tests.unit.plan.test_memory import LOAD, ROUND

REFERENCE = ZeroChoice(stage=3)
# Nothing stays gathered for the backward, as for a model much larger than the reuse distance.
STAGE_3 = ZeroChoice(stage=3, reuse_distance=0)
FOUR = Machine(ranks_per_node=4, device_memory=2**40)


def volume(choice: ZeroChoice, load: StepLoad = LOAD, machine: Machine = FOUR) -> tuple[float, float, float]:
    """Volumes of parameters, gradients and reference, in units of a 16-bit model; without the ring's (N - 1) / N."""
    unit = 2 * ROUND.parameters * (machine.ranks - 1) / machine.ranks
    traffic = step_traffic(ROUND, choice, REFERENCE, load, machine)
    return traffic.parameters / unit, traffic.gradients / unit, traffic.reference / unit


@pytest.mark.parametrize(
    ("choice", "once", "thrice"),
    [
        (ZeroChoice(stage=0), (0, 2, 1), (0, 2, 1)),
        (ZeroChoice(stage=1, reduces_to_owner=True), (1, 1, 1), (1, 1, 1)),
        (ZeroChoice(stage=2, reduces_to_owner=True), (1, 1, 1), (1, 3, 1)),
        (ZeroChoice(stage=2), (1, 2, 1), (1, 6, 1)),
        (STAGE_3, (2, 1, 1), (6, 3, 1)),
        # All 8 M elements are within half of the reuse distance: the backward gathers nothing again.
        (ZeroChoice(stage=3), (1, 1, 1), (3, 3, 1)),
        # Half of them are.
        (ZeroChoice(stage=3, reuse_distance=8_000_000), (1.5, 1, 1), (4.5, 3, 1)),
    ],
)
def test_volumes_of_one_and_of_three_micro_batches(choice, once, thrice):
    assert volume(choice) == pytest.approx(once)
    assert volume(choice, dataclasses.replace(LOAD, micro_batches=3)) == pytest.approx(thrice)


def test_small_tensors_are_gathered_once_per_step():
    sizes = dataclasses.replace(ROUND, tensors=(1_000_000,) * 7 + (10_000,) * 100)
    choice = dataclasses.replace(STAGE_3, keep_below=10_000)
    traffic = step_traffic(sizes, choice, REFERENCE, dataclasses.replace(LOAD, micro_batches=2), FOUR)
    assert traffic.parameters == (4 * 7_000_000 + 1_000_000) * 2 * 3 / 4
    assert traffic.reference == 7_000_000 * 2 * 3 / 4


def test_checkpointing_uses_blocks_three_times():
    load = dataclasses.replace(LOAD, checkpointing=True)
    assert volume(ZeroChoice(stage=3, reuse_distance=12_000_000), load)[0] == pytest.approx(1.5)


def test_number_of_reference_forwards():
    # Two forwards for twice the micro-batches of one forward; none if the reference is cached.
    tokens = dataclasses.replace(LOAD, tokens=2**14, micro_batches=8)
    assert tokens.reference_batches == 4
    assert volume(STAGE_3, tokens)[2] == pytest.approx(2)
    assert volume(STAGE_3, dataclasses.replace(tokens, reference=False))[2] == 0


def test_zeropp_sends_little_between_nodes():
    choice = dataclasses.replace(STAGE_3, secondary_ranks=8, int8_weights=True, int4_gradients=True)
    machine = Machine(nodes=4, ranks_per_node=8, device_memory=2**40)
    # The paper's 0.75 of three volumes (Wang et al., 2023): half of one gather, none of the other, a quarter.
    assert volume(choice, machine=machine)[:2] == pytest.approx((0.5, 0.25))


def test_one_rank_sends_nothing():
    assert step_traffic(ROUND, STAGE_3, REFERENCE, LOAD, Machine(device_memory=2**40)).total == 0


def test_a_reference_that_is_another_model_has_its_own_traffic():
    small = dataclasses.replace(ROUND, tensors=ROUND.tensors[:2])
    same, other = (step_traffic(ROUND, STAGE_3, REFERENCE, LOAD, FOUR, one) for one in (None, small))
    assert other.reference * 4 == same.reference
    assert (other.parameters, other.gradients) == (same.parameters, same.gradients)


@pytest.mark.parametrize(("stage", "sent"), [(2, 2 * 4 * 8e6 / 8 * 3 / 4), (3, 0)])
def test_moving_the_reference_sends_float32_weights_below_stage_3(stage, sent):
    """All-reduced once in eight steps; four ranks send three quarters of the volume."""
    load = dataclasses.replace(LOAD, update=ReferenceUpdate(share=0.5, every=8))
    still, moving = (step_traffic(ROUND, ZeroChoice(stage=stage), REFERENCE, one, FOUR) for one in (LOAD, load))
    assert moving.reference - still.reference == sent


def test_adapters_alone_are_sent_and_zero_3_gathers_the_base_for_the_reference_too():
    adapted = dataclasses.replace(ROUND, adapters=(1_000_000,))
    packed = dataclasses.replace(adapted, packed=(1_000_000,) * 4)
    unit = 2 * 1_000_000 * 3 / 4
    two = step_traffic(adapted, ZeroChoice(stage=2, reduces_to_owner=True), REFERENCE, LOAD, FOUR)
    assert (two.parameters / unit, two.gradients / unit, two.reference / unit) == (1, 1, 0)
    # However near the reuse distance is: 8 M elements in the forward and in the backward.
    three = step_traffic(adapted, ZeroChoice(stage=3), REFERENCE, LOAD, FOUR)
    assert (three.parameters / unit, three.gradients / unit, three.reference / unit) == (16, 1, 8)
    fewer = step_traffic(packed, ZeroChoice(stage=3), REFERENCE, LOAD, FOUR)
    saved = 4 * (1 - 4.5 / 16)
    assert (fewer.parameters / unit, fewer.reference / unit) == (16 - 2 * saved, 8 - saved)
