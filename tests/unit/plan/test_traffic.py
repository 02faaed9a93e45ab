"""Bytes that a rank sends, against the volumes of the ZeRO paper."""

from __future__ import annotations

import dataclasses

import pytest

from minimind.plan.choice import Machine, StepLoad, ZeroChoice
from minimind.plan.traffic import step_traffic
from tests.unit.plan.test_memory import LOAD, ROUND

REFERENCE = ZeroChoice(stage=3)
# As for a model that is large beside what ZeRO-3 keeps.
STAGE_3 = ZeroChoice(stage=3, reuse_distance=0)
FOUR = Machine(ranks_per_node=4, device_memory=2**40)


def volume(choice: ZeroChoice, load: StepLoad = LOAD, machine: Machine = FOUR) -> tuple[float, float, float]:
    """Of parameters, gradients and reference, in 16-bit models; a ring's (N - 1) / N taken out."""
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
        # All 8 M elements lie within half of the reuse distance: nothing is gathered again for backward.
        (ZeroChoice(stage=3), (1, 1, 1), (3, 3, 1)),
        # Half of them do.
        (ZeroChoice(stage=3, reuse_distance=8_000_000), (1.5, 1, 1), (4.5, 3, 1)),
    ],
)
def test_volumes_of_one_and_of_three_micro_batches(choice, once, thrice):
    assert volume(choice) == pytest.approx(once)
    assert volume(choice, dataclasses.replace(LOAD, micro_batches=3)) == pytest.approx(thrice)


def test_small_tensors_are_gathered_once_a_step():
    sizes = dataclasses.replace(ROUND, tensors=(1_000_000,) * 7 + (10_000,) * 100)
    choice = dataclasses.replace(STAGE_3, keep_below=10_000)
    traffic = step_traffic(sizes, choice, REFERENCE, dataclasses.replace(LOAD, micro_batches=2), FOUR)
    assert traffic.parameters == (4 * 7_000_000 + 1_000_000) * 2 * 3 / 4
    assert traffic.reference == 7_000_000 * 2 * 3 / 4


def test_checkpointed_blocks_are_used_three_times_on_the_way_back():
    load = dataclasses.replace(LOAD, checkpointing=True)
    assert volume(ZeroChoice(stage=3, reuse_distance=12_000_000), load)[0] == pytest.approx(1.5)


def test_the_reference_s_forwards():
    # Twice as many micro-batches as one forward takes; none when it is cached.
    tokens = dataclasses.replace(LOAD, tokens=2**14, micro_batches=8)
    assert tokens.reference_batches == 4
    assert volume(STAGE_3, tokens)[2] == pytest.approx(2)
    assert volume(STAGE_3, dataclasses.replace(tokens, reference=False))[2] == 0


def test_zeropp_keeps_most_within_a_machine():
    choice = dataclasses.replace(STAGE_3, secondary_ranks=8, int8_weights=True, int4_gradients=True)
    machine = Machine(nodes=4, ranks_per_node=8, device_memory=2**40)
    # The paper's 0.75 of three volumes (Wang et al., 2023): half of one gather, none of the other, a quarter.
    assert volume(choice, machine=machine)[:2] == pytest.approx((0.5, 0.25))


def test_one_rank_sends_nothing():
    assert step_traffic(ROUND, STAGE_3, REFERENCE, LOAD, Machine(device_memory=2**40)).total == 0
