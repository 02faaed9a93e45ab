"""Models for engines at stage 2, and the parts that ZeRO-3 assigns to ranks; stage 3 is tested in tests/distributed."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from minimind.engine.build import build_scorer, own_share, transformer_blocks
from minimind.model.configuration import MiniMindConfig
from minimind.ranks.world import World
from minimind.weights.sources import RandomSource


def rank_of(rank, size):
    return World(rank=rank, local_rank=rank, size=size, device=torch.device("cpu"))


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (1, [[0, 1, 2, 3, 4, 5, 6, 7, 8, 9]]),
        (3, [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]),
        (6, [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9], []]),
    ],
)
def test_shares_are_equal_but_for_the_last_ranks(size, expected):
    tensor = torch.arange(10).view(2, 5)
    shares = [own_share(tensor, rank_of(rank, size)) for rank in range(size)]
    assert [share.tolist() for share in shares] == expected
    # Views: nothing of a mapped tensor is read.
    assert all(share.untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr() for share in shares)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_model_below_stage_3_has_copies_of_the_sources_weights(dtype):
    source = RandomSource(MiniMindConfig(hidden_size=64, num_hidden_layers=2), seed=1)
    scorers = [build_scorer(source, {"zero_optimization": {"stage": 2}}, dtype, rank_of(0, 1)) for _ in range(2)]
    first, second = (dict(scorer.model.named_parameters()) for scorer in scorers)
    assert first
    for name, parameter in first.items():
        assert parameter.dtype == dtype
        assert torch.equal(parameter, source.read(name).to(dtype))
        assert parameter.data_ptr() != second[name].data_ptr()


def test_blocks_are_those_that_the_model_class_declares():
    class Block(nn.Module):
        pass

    model = nn.ModuleList([Block(), nn.Linear(1, 1), Block()])
    model._no_split_modules = ["Block"]
    assert transformer_blocks(model) == [model[0], model[2]]
    model._no_split_modules = None
    assert transformer_blocks(model) == []
    assert transformer_blocks(SimpleNamespace(modules=lambda: [], _no_split_modules=["Block"])) == []
