"""MiniMind's tensor names and those of this project's model, in both directions."""

from __future__ import annotations

import torch

from minimind.weights.names import HEAD, minimind_state, stacked_names
from tests.unit.weights.conftest import minimind


def test_experts_are_grouped_and_sorted_by_number():
    layer = "model.layers.0.mlp.experts"
    names = [f"{layer}.{index}.up_proj.weight" for index in (10, 2, 0, 1)] + [HEAD, "model.layers.0.mlp.gate.weight"]
    assert stacked_names(names) == {
        # by number, not by text: 2 before 10
        f"{layer}.up_proj": [f"{layer}.{index}.up_proj.weight" for index in (0, 1, 2, 10)],
        HEAD: [HEAD],
        "model.layers.0.mlp.gate.weight": ["model.layers.0.mlp.gate.weight"],
    }


def test_shared_experts_are_not_stacked():
    name = "model.layers.0.mlp.shared_experts.0.up_proj.weight"
    assert stacked_names([name]) == {name: [name]}


def test_stacks_are_split_into_experts():
    layer = "model.layers.1.mlp.experts"
    stack = torch.arange(12.0).view(3, 2, 2)
    state = minimind_state({f"{layer}.down_proj": stack, "model.norm.weight": torch.ones(2)})
    assert list(state) == [*(f"{layer}.{index}.down_proj.weight" for index in range(3)), "model.norm.weight"]
    assert torch.equal(state[f"{layer}.1.down_proj.weight"], torch.tensor([[4.0, 5.0], [6.0, 7.0]]))


def test_names_survive_a_round_trip(kind):
    ours = minimind(kind).state_dict()
    assert set(stacked_names(minimind_state(ours))) == set(ours)
