"""Whole tensors of a checkpoint, whatever ranks and stage wrote it. Real ones: tests/distributed/test_reshard.py."""

from __future__ import annotations

import pickle
from collections import OrderedDict

import pytest
import torch

from minimind.checkpoints.consolidated import SavedWeights
from minimind.checkpoints.reshard import MASTER
from minimind.errors import CheckpointError
from tests.unit.checkpoints.test_reshard import KEYS, RANKS, SHAPES, write_stage0, write_stage2, write_stage3

# The wrapper's name before the model's own.
NAMES = {f"model.{name}": name for name in SHAPES}


@pytest.fixture
def states(monkeypatch):
    monkeypatch.setattr("tests.unit.checkpoints.test_reshard.SHAPES", SHAPES)
    torch.manual_seed(0)
    return {name: {key: torch.randn(shape) for key in KEYS} for name, shape in SHAPES.items()}


def add_shapes(folder):
    """What DeepSpeed writes into the model file beside what resuming reads: the shapes of trained parameters."""
    for path in folder.glob("*model_states.pt"):
        values = torch.load(path, weights_only=True)
        values.setdefault("param_shapes", [OrderedDict((name, torch.Size(shape)) for name, shape in SHAPES.items())])
        torch.save(values, path)


@pytest.mark.parametrize("write", [write_stage0, write_stage2, write_stage3])
def test_tensors_are_whole(write, states, tmp_path):
    write(tmp_path, states)
    add_shapes(tmp_path)
    saved = SavedWeights(tmp_path)
    assert saved.shapes() == SHAPES
    assert saved.trained == list(SHAPES)
    for name in SHAPES:
        assert torch.equal(saved.read(name), states[name][MASTER])


def test_frozen_parameters_and_buffers_are_read(states, tmp_path):
    write_stage3(tmp_path, states)
    frozen = torch.arange(10.0)
    padded = torch.cat([frozen, torch.zeros(2)]).chunk(RANKS)
    for rank in range(RANKS):
        path = tmp_path / f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt"
        values = torch.load(path, weights_only=True)
        values |= {
            "frozen_param_shapes": OrderedDict({"model.frozen": torch.Size([2, 5])}),
            "frozen_param_fragments": OrderedDict({"model.frozen": padded[rank]}),
            "module": {"model.frozen": torch.empty(0), "model.buffer": torch.ones(3), "model.a": torch.empty(0)},
        }
        torch.save(values, path)
    saved = SavedWeights(tmp_path)
    assert torch.equal(saved.read("frozen"), frozen.view(2, 5))
    assert torch.equal(saved.read("buffer"), torch.ones(3))
    assert saved.trained == list(SHAPES)


def test_weights_without_their_float32_values_are_refused(states, tmp_path):
    halves = {name: {**state, MASTER: state[MASTER].half()} for name, state in states.items()}
    write_stage0(tmp_path, halves)
    with pytest.raises(CheckpointError, match="16-bit weights at ZeRO stage 0"):
        SavedWeights(tmp_path)


def test_missing_files_and_elements_are_noticed(states, tmp_path):
    write_stage2(tmp_path, states)
    add_shapes(tmp_path)
    path = tmp_path / f"bf16_zero_pp_rank_{RANKS - 1}_mp_rank_00_optim_states.pt"
    saved = torch.load(path, weights_only=False)
    saved["optimizer_state_dict"]["single_partition_of_fp32_groups"] = [torch.zeros(1)]
    torch.save(saved, path)
    with pytest.raises(CheckpointError, match="elements of c are missing"):
        SavedWeights(tmp_path).read("c")
    path.unlink()
    with pytest.raises(CheckpointError, match="optimizer files of 2 instead of 3 ranks"):
        SavedWeights(tmp_path)


class Runs:
    def __reduce__(self):
        return (print, ("this pickle ran code",))


def test_a_file_cannot_run_code(tmp_path, capsys):
    torch.save({"module": Runs(), "dp_world_size": 1}, tmp_path / "mp_rank_00_model_states.pt")
    with pytest.raises(CheckpointError, match="cannot be read"):
        SavedWeights(tmp_path)
    (tmp_path / "mp_rank_00_model_states.pt").write_bytes(pickle.dumps(Runs()))
    with pytest.raises(CheckpointError):
        SavedWeights(tmp_path)
    assert "ran code" not in capsys.readouterr().out
