"""DeepSpeed's checkpoint files: names, keys and the order of parameters. Resharding them: tests/unit/checkpoints."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
from deepspeed.checkpoint import constants
from deepspeed.utils.tensor_fragment import fragment_address

from minimind.engine.patches.checkpoint_files import (
    STAGE2_KEYS,
    STAGE3_KEYS,
    ModelFile,
    SavedRange,
    model_file,
    model_files,
    rank_of_file,
    read_shard_file,
    shard_files,
)


def test_keys_are_those_of_the_installed_deepspeed():
    assert STAGE3_KEYS == (constants.FP32_FLAT_GROUPS, constants.OPTIMIZER_STATE_DICT)
    assert STAGE2_KEYS == (constants.SINGLE_PARTITION_OF_FP32_GROUPS, constants.BASE_OPTIMIZER_STATE)
    assert constants.PARAM_SLICE_MAPPINGS == "param_slice_mappings"
    assert constants.PARAM_SHAPES == "param_shapes"
    assert constants.LOSS_SCALER == "loss_scaler"


@pytest.mark.parametrize(
    ("name", "rank"),
    [
        ("mp_rank_00_model_states.pt", None),
        ("zero_pp_rank_0_mp_rank_00_optim_states.pt", 0),
        ("bf16_zero_pp_rank_11_mp_rank_00_optim_states.pt", 11),
        ("zero_to_fp32.py", None),
    ],
)
def test_rank_of_a_file_is_in_its_name(name, rank):
    assert rank_of_file(name) == rank


@pytest.mark.parametrize("name", ["mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_model_states.pt"])
def test_model_file_is_rank_0s(name, tmp_path):
    for other in (name, "zero_pp_rank_1_mp_rank_00_model_states.pt"):
        (tmp_path / other).touch()
    assert model_file(tmp_path) == tmp_path / name


def test_no_or_two_model_files_are_an_error(tmp_path):
    with pytest.raises(ValueError, match="0 model files"):
        model_file(tmp_path)
    for name in ("mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_model_states.pt"):
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match="2 model files"):
        model_file(tmp_path)


def test_optimizer_files_are_in_the_order_of_ranks_not_of_names(tmp_path):
    names = [f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt" for rank in range(12)]
    for name in names:
        (tmp_path / name).touch()
    assert [path.name for path in shard_files(tmp_path)] == names
    assert shard_files(tmp_path / "missing") == []


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["zero_pp_rank_1_mp_rank_00_optim_states.pt"], r"ranks \[1\]"),
        (
            ["zero_pp_rank_0_mp_rank_00_optim_states.pt", "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt"],
            r"ranks \[0, 0\]",
        ),
        (["some_optim_states.pt"], "no rank in its name"),
    ],
)
def test_missing_doubled_and_unnumbered_optimizer_files_are_an_error(names, message, tmp_path):
    for name in names:
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match=message):
        shard_files(tmp_path)


def save_model(folder, **values):
    torch.save(values, folder / "mp_rank_00_model_states.pt")
    return ModelFile(folder / "mp_rank_00_model_states.pt")


def test_model_file_gives_counters_and_lacks_what_was_not_saved(tmp_path):
    model = save_model(tmp_path, dp_world_size=2, global_steps=4, global_samples=32, skipped_steps=1, module={})
    assert model.ranks == 2
    assert model.counters == {"global_steps": 4, "global_samples": 32, "skipped_steps": 1}
    with pytest.raises(KeyError, match="lr_scheduler"):
        _ = model.scheduler


def test_zero3_ranges_are_parts_of_each_padded_parameter(tmp_path):
    # 5 elements on 3 ranks: parts of 2, 2, 1; 1 element: ranks 1 and 2 have padding only.
    shapes = [OrderedDict(a=torch.Size([5]), b=torch.Size([1])), OrderedDict(c=torch.Size([2, 3]))]
    model = save_model(tmp_path, dp_world_size=3, param_shapes=shapes)
    path = tmp_path / "zero_pp_rank_2_mp_rank_00_optim_states.pt"
    masters, inner = [torch.zeros(3), torch.zeros(2)], {"state": {}, "param_groups": [{"lr": 1.0}]}
    torch.save({"optimizer_state_dict": {"fp32_flat_groups": masters, "optimizer_state_dict": inner}}, path)
    shard = read_shard_file(path, model, rank=2)
    assert shard.ranges == [
        [SavedRange(name="a", offset=0, numel=1), SavedRange(name="b", offset=2, numel=0)],
        [SavedRange(name="c", offset=0, numel=2)],
    ]
    assert shard.optimizer == inner
    assert shard.scaler == {}


def test_zero2_ranges_are_the_saved_slices(tmp_path):
    model = save_model(tmp_path, dp_world_size=1)
    path = tmp_path / "zero_pp_rank_0_mp_rank_00_optim_states.pt"
    slices = OrderedDict(a=fragment_address(numel=3, start=0), b=fragment_address(numel=2, start=3))
    saved = {
        "single_partition_of_fp32_groups": [torch.arange(5.0)],
        "base_optimizer_state": {"state": {}, "param_groups": [{}]},
        "param_slice_mappings": [slices],
        "loss_scaler": "scaler",
        "overflow": False,
        "other": 1,
    }
    torch.save({"optimizer_state_dict": saved}, path)
    shard = read_shard_file(path, model, rank=0)
    assert shard.ranges == [[SavedRange(name="a", offset=0, numel=3), SavedRange(name="b", offset=3, numel=2)]]
    assert shard.scaler == {"loss_scaler": "scaler", "overflow": False}
    assert torch.equal(shard.masters[0], torch.arange(5.0))


def test_model_files_of_all_ranks_are_in_their_order(tmp_path):
    for rank in (0, 1, 10, *range(2, 10)):
        (tmp_path / f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt").touch()
    assert [rank_of_file(path.name) for path in model_files(tmp_path)] == list(range(11))
    (tmp_path / "zero_pp_rank_3_mp_rank_00_model_states.pt").unlink()
    with pytest.raises(ValueError, match="model files of ranks"):
        model_files(tmp_path)


def test_below_stage_3_there_is_one_model_file(tmp_path):
    (tmp_path / "mp_rank_00_model_states.pt").touch()
    assert model_files(tmp_path) == [tmp_path / "mp_rank_00_model_states.pt"]
