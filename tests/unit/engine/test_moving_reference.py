"""The moved reference against averages by hand, on ranks that share parameters unequally; its file in checkpoints."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from minimind.engine.build import own_range
from minimind.engine.moving_reference import MovingReference
from minimind.errors import CheckpointError
from minimind.objective.reference_update import parse_reference_update
from minimind.ranks.world import World

# Start weights of a bf16 reference, which rounds them. Three ranks: shares of 3, 3, 1 and of 1, 1, 0 elements.
START = {"long": torch.linspace(1, 2, 7), "short": torch.tensor([0.1, 0.3])}
SOURCE = SimpleNamespace(read=START.__getitem__)


def made(update, rank=0, ranks=1, dtype=torch.bfloat16):
    """A rank's moving reference, its shards (padded as DeepSpeed pads them), and a counter of released gathers."""
    world = World(rank=rank, local_rank=rank, size=ranks, device=torch.device("cpu"))
    model = nn.Module()
    for name, value in START.items():
        parameter = nn.Parameter(torch.empty(0))
        start, stop = own_range(value.numel(), world)
        parameter.ds_numel = value.numel()
        parameter.ds_tensor = torch.zeros(-(-value.numel() // ranks), dtype=dtype)
        parameter.ds_tensor[: stop - start] = value[start:stop]
        model.register_parameter(name, parameter)
    released = []
    reference = SimpleNamespace(
        world=world,
        engine=SimpleNamespace(module=SimpleNamespace(model=model)),
        release_gathered=lambda: released.append(1),
    )
    moving = MovingReference(reference, SOURCE, parse_reference_update(update))
    return moving, {name: p.ds_tensor for name, p in model.named_parameters()}, released


def policy(weights, rank=0, ranks=1):
    world = World(rank=rank, local_rank=rank, size=ranks, device=torch.device("cpu"))
    return SimpleNamespace(
        own_weights=lambda: ((name, value[slice(*own_range(len(value), world))]) for name, value in weights.items())
    )


def moved_by(amount):
    return {name: value + amount for name, value in START.items()}


def test_a_slow_average_of_a_bfloat16_reference_moves():
    """200 steps of 0.01 towards weights 0.01 away: each step is far below a rounding error of bfloat16 at 1 to 2."""
    moving, shards, released = made("ema:0.99@1")
    target = moved_by(0.02)
    for step in range(1, 201):
        moving.after_step(step, policy(target))
    for name, start in START.items():
        by_hand = target[name].double() + (start - target[name]).double() * 0.99**200
        torch.testing.assert_close(shards[name], by_hand.to(torch.bfloat16), rtol=0, atol=0)
        assert not torch.equal(shards[name], start.to(torch.bfloat16))
    assert len(released) == 200
    # The same in bfloat16 alone would stay where it was.
    lost = START["long"].to(torch.bfloat16).lerp(target["long"].to(torch.bfloat16), 0.01)
    assert torch.equal(lost, START["long"].to(torch.bfloat16))


def test_it_moves_only_when_due_and_a_hard_update_takes_the_policy():
    moving, shards, released = made("hard@2")
    moving.after_step(1, policy(moved_by(1.0)))
    assert released == []
    moving.after_step(2, policy(moved_by(1.0)))
    assert all(torch.equal(shards[name], (value + 1).to(torch.bfloat16)) for name, value in START.items())


def test_a_float32_reference_is_its_own_average():
    moving, shards, _ = made("soft:0.25@1", dtype=torch.float32)
    moving.move(policy(moved_by(1.0)))
    moving.move(policy(moved_by(2.0)))
    # 0.75 * (0.25 * 1) + 0.25 * 2
    for name, value in START.items():
        torch.testing.assert_close(shards[name], value + 0.6875)


@pytest.mark.parametrize("update", ["soft:0.3@1", "hard@1"])
@pytest.mark.parametrize(("before", "after"), [(3, 3), (3, 1), (1, 3)])
def test_a_checkpoint_restores_it_on_other_ranks(tmp_path, update, before, after):
    """Bit for bit: averages that bfloat16 would round are kept as they are."""
    written = {}
    for rank in range(before):
        moving, shards, _ = made(update, rank, before)
        moving.move(policy(moved_by(0.001), rank, before))
        moving.write(tmp_path)
        written[rank] = shards
    for rank in range(after):
        moving, shards, released = made(update, rank, after)
        moving.read(tmp_path)
        assert released == [1]
        moving.move(policy(moved_by(0.5), rank, after))
        alone, whole, _ = made(update)
        alone.move(policy(moved_by(0.001)))
        alone.move(policy(moved_by(0.5)))
        for name, value in START.items():
            start, stop = own_range(len(value), World(rank=rank, local_rank=rank, size=after, device="cpu"))
            assert torch.equal(shards[name][: stop - start], whole[name][start:stop])
            assert not shards[name][stop - start :].any()


def test_a_checkpoint_without_all_files_is_refused(tmp_path):
    moving, _, _ = made("hard@1", rank=0, ranks=2)
    with pytest.raises(CheckpointError, match="0 files of the reference"):
        moving.read(tmp_path)
    moving.write(tmp_path)
    with pytest.raises(CheckpointError, match="1 files of the reference"):
        moving.read(tmp_path)
