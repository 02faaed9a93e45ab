"""Pairs of a global batch: all of them on every rank, in one order, however they are split."""

from __future__ import annotations

import pytest
import torch

from minimind.ranks.world import World
from minimind.training.jobs import global_batch
from minimind.training.jobs.global_batch import gather_pairs

# Line -> value.
PAIRS = {7: 70.0, 2: 20.0, 9: 90.0, 4: 40.0, 1: 10.0, 3: 30.0}


def gathered(monkeypatch, shares):
    """What each rank gets.

    Args:
        shares: of each rank, (line, weight) of its pairs.
    """
    weighted = any(weight != 1 for share in shares for _, weight in share) or len({len(s) for s in shares}) > 1
    tables: dict[int, torch.Tensor] = {}

    def run(rank, reduce):
        monkeypatch.setattr(global_batch, "all_reduce", reduce)
        world = World(rank=rank, local_rank=rank, size=len(shares), device=torch.device("cpu"))
        values = torch.tensor([[PAIRS[line], -PAIRS[line]] for line, _ in shares[rank]], dtype=torch.float64)
        weights = [float(weight) for _, weight in shares[rank]] if weighted else None
        return gather_pairs(world, values, [line for line, _ in shares[rank]], weights)

    def sent(rank):
        def reduce(tensor, op="sum"):
            if op == "max":
                return torch.tensor(max(map(len, shares)))
            tables[rank] = tensor.clone()
            return tensor

        return reduce

    def received(tensor, op="sum"):
        return torch.tensor(max(map(len, shares))) if op == "max" else sum(tables.values())

    for rank in range(len(shares)):
        run(rank, sent(rank))
    return [run(rank, received) for rank in range(len(shares))]


@pytest.mark.parametrize(
    "shares",
    [
        [[(7, 1), (2, 1), (9, 1), (4, 1), (1, 1), (3, 1)]],
        [[(3, 1), (9, 1), (1, 1)], [(7, 1), (4, 1), (2, 1)]],
        [[(1, 1), (2, 1)], [(3, 1), (4, 1)], [(7, 1), (9, 1)]],
    ],
)
def test_the_order_is_that_of_the_lines(monkeypatch, shares):
    for rank, found in enumerate(gathered(monkeypatch, shares)):
        assert found.values.tolist() == [[value, -value] for _, value in sorted(PAIRS.items())]
        assert found.values[found.places, 0].tolist() == [PAIRS[line] for line, _ in shares[rank]]


def test_pairs_that_do_not_count_are_left_out(monkeypatch):
    """As in an evaluation: the last rank has no pair left and takes the first one with weight 0."""
    shares = [[(2, 1), (9, 1)], [(4, 1)], [(2, 0)]]
    for rank, found in enumerate(gathered(monkeypatch, shares)):
        assert found.values[:, 0].tolist() == [20.0, 40.0, 90.0]
        counted = [PAIRS[line] for line, weight in shares[rank] if weight]
        assert found.values[found.places, 0].tolist()[: len(counted)] == counted
        assert len(found.places) == len(shares[rank])
