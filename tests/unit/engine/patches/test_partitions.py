"""The elements that a rank owns, from the attributes in which DeepSpeed keeps them."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from deepspeed.utils.tensor_fragment import fragment_address

from minimind.engine.patches.partitions import (
    OwnedRange,
    flat_sizes,
    full_numel,
    load_shard_state,
    make_shard_state,
    owned_ranges,
    shard_of,
    wrapped_optimizer,
)


def test_full_size_of_a_parameter_with_and_without_zero3():
    parameter = torch.nn.Parameter(torch.zeros(2, 3))
    assert full_numel(parameter) == 6
    parameter.ds_numel, parameter.ds_tensor = 12, torch.ones(4)
    assert full_numel(parameter) == 12
    assert shard_of(parameter) is parameter.ds_tensor


def test_zero3_gives_each_rank_an_equal_part_of_each_parameter_and_pads_the_last():
    # 10 elements on 4 ranks: parts of 3, of which rank 3 owns 1. 2 elements on 4 ranks: ranks 2 and 3 own padding.
    parameters = {"a": SimpleNamespace(ds_numel=10, numel=lambda: 0), "b": SimpleNamespace(ds_numel=2, numel=lambda: 0)}
    ids = {id(parameters["a"]): 7, id(parameters["b"]): 9}
    optimizer = SimpleNamespace(
        grad_position={7: (0, 0, 3), 9: (1, 5, 1)}, get_param_id=lambda parameter: ids[id(parameter)]
    )
    found = {rank: owned_ranges(optimizer, parameters, 3, rank) for rank in (0, 3)}
    assert found[0] == {
        "a": OwnedRange(group=0, offset=0, start=0, stop=3),
        "b": OwnedRange(group=1, offset=5, start=0, stop=1),
    }
    assert found[3] == {
        "a": OwnedRange(group=0, offset=0, start=9, stop=10),
        "b": OwnedRange(group=1, offset=5, start=2, stop=2),
    }


def test_zero2_partitions_all_parameters_together_and_may_leave_a_rank_without_one():
    mapping = SimpleNamespace(
        param_group_index=0,
        lp_fragment_address=fragment_address(numel=4, start=6),
        hp_fragment_address=fragment_address(numel=4, start=20),
    )
    parameters = {"here": SimpleNamespace(_hp_mapping=mapping), "elsewhere": SimpleNamespace(_hp_mapping=None)}
    assert owned_ranges(None, parameters, 2, 0) == {"here": OwnedRange(group=0, offset=20, start=6, stop=10)}


def make_optimizer(**more):
    inner = SimpleNamespace(param_groups=[{"params": [torch.zeros(5)]}, {"params": [torch.zeros(2)]}])
    return SimpleNamespace(optimizer=inner, fp32_partitioned_groups_flat=[torch.zeros(3)], **more)


def test_sizes_of_flat_tensors_and_the_wrapped_optimizer():
    optimizer = make_optimizer()
    assert flat_sizes(optimizer, 2) == [5, 2]
    assert flat_sizes(optimizer, 3) == [3]
    assert wrapped_optimizer(optimizer, 1) is optimizer.optimizer
    assert wrapped_optimizer(optimizer, 0) is optimizer


@pytest.mark.parametrize(
    ("stage", "masters_key", "inner_key"),
    [
        (2, "single_partition_of_fp32_groups", "base_optimizer_state"),
        (3, "fp32_flat_groups", "optimizer_state_dict"),
    ],
)
def test_shard_state_has_other_contents_under_deepspeeds_keys(stage, masters_key, inner_key):
    own = {
        masters_key: ["old"],
        inner_key: {"state": {}, "param_groups": [{"lr": 1.0, "eps": 2.0}]},
        "zero_stage": stage,
    }
    masters = [torch.ones(3)]
    state = make_shard_state(
        SimpleNamespace(state_dict=lambda: own),
        stage,
        masters=masters,
        states={0: {"step": 4}},
        hyperparameters={"lr": 0.5},
        scaler={"overflow": False},
    )
    assert state == {
        masters_key: masters,
        inner_key: {"state": {0: {"step": 4}}, "param_groups": [{"lr": 0.5, "eps": 2.0}]},
        "zero_stage": stage,
        "overflow": False,
    }
    assert own[masters_key] == ["old"]


@pytest.mark.parametrize(("stage", "expected"), [(2, ["load"]), (3, ["prologue", "load", "epilogue"])])
def test_shard_state_is_loaded_as_this_ranks_between_zero3s_two_calls(stage, expected):
    calls, given = [], []

    def load_state_dict(shards, load_from_fp32_weights):
        calls.append("load")
        given.extend([shards, load_from_fp32_weights])

    optimizer = SimpleNamespace(
        load_state_dict=load_state_dict,
        checkpoint_event_prologue=lambda: calls.append("prologue"),
        checkpoint_event_epilogue=lambda: calls.append("epilogue"),
    )
    load_shard_state(optimizer, stage, {"x": 1}, rank=1, ranks=3)
    assert given == [[None, {"x": 1}, None], True]
    assert calls == expected
