"""Whatever ranks and stage wrote a parameter, any range of it can be read: here of sizes that nothing divides."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
from deepspeed.utils.tensor_fragment import fragment_address

from minimind.checkpoints.reshard import MASTER, SavedStates
from minimind.errors import CheckpointError

RANKS = 3
SHAPES = {"a": (5, 7), "b": (1,), "c": (2, 11)}
KEYS = (MASTER, "exp_avg", "exp_avg_sq")


@pytest.fixture
def states():
    torch.manual_seed(0)
    return {name: {key: torch.randn(shape) for key in KEYS} for name, shape in SHAPES.items()}


def optimizer(flats):
    """torch's state of an AdamW over flat rows, after four steps."""
    state = {
        number: {"step": torch.tensor(4.0), **{key: flat[key] for key in KEYS if key != MASTER}}
        for number, flat in enumerate(flats)
    }
    return {"state": state, "param_groups": [{"lr": 0.5, "params": list(range(len(flats)))}]}


def save_common(folder, name, **more):
    counters = {"global_steps": 4, "global_samples": 8, "skipped_steps": 0}
    torch.save({**counters, "dp_world_size": RANKS, "module": {}, **more}, folder / name)


def write_stage0(folder, states):
    module = {name: state[MASTER] for name, state in states.items()}
    save_common(folder, "mp_rank_00_model_states.pt", module=module, optimizer=optimizer(list(states.values())))


def write_stage2(folder, states):
    """One row of all parameters, padded to a multiple of the ranks and cut; the padding of masters is left out."""
    save_common(folder, "mp_rank_00_model_states.pt")
    rows = {key: torch.cat([state[key].flatten() for state in states.values()]) for key in KEYS}
    length = len(rows[MASTER])
    share = -(-length // RANKS)
    rows = {key: torch.nn.functional.pad(row, (0, share * RANKS - length)) for key, row in rows.items()}
    for rank in range(RANKS):
        low, high = rank * share, (rank + 1) * share
        mapping, offset = OrderedDict(), 0
        for name, state in states.items():
            first, last = max(low, offset), min(high, offset + state[MASTER].numel())
            if first < last:
                mapping[name] = fragment_address(numel=last - first, start=first - low)
            offset += state[MASTER].numel()
        flat = {key: row[low:high].clone() for key, row in rows.items()}
        saved = {
            "base_optimizer_state": optimizer([flat]),
            "single_partition_of_fp32_groups": [flat[MASTER][: max(0, min(high, length) - low)]],
            "param_slice_mappings": [mapping],
            "loss_scaler": "scaler",
        }
        torch.save({"optimizer_state_dict": saved}, folder / f"bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")


def write_stage3(folder, states):
    """Each parameter padded and cut by itself; two rows, as DeepSpeed makes of large models."""
    groups = [["a", "b"], ["c"]]
    shapes = [OrderedDict((name, torch.Size(SHAPES[name])) for name in group) for group in groups]
    for rank in range(RANKS):
        save_common(folder, f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt", param_shapes=shapes)
        flats = []
        for group in groups:
            parts = {key: [] for key in KEYS}
            for name in group:
                share = -(-states[name][MASTER].numel() // RANKS)
                for key in KEYS:
                    flat = states[name][key].flatten()
                    padded = torch.nn.functional.pad(flat, (0, share * RANKS - len(flat)))
                    parts[key].append(padded[rank * share : (rank + 1) * share])
            flats.append({key: torch.cat(part) for key, part in parts.items()})
        saved = {"fp32_flat_groups": [flat[MASTER] for flat in flats], "optimizer_state_dict": optimizer(flats)}
        torch.save({"optimizer_state_dict": saved}, folder / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")


@pytest.mark.parametrize("write", [write_stage0, write_stage2, write_stage3])
def test_any_range_of_any_state_can_be_read(write, states, tmp_path):
    write(tmp_path, states)
    saved = SavedStates(tmp_path, list(SHAPES))
    assert saved.keys == list(KEYS)
    assert saved.scalars == {"step": torch.tensor(4.0)}
    assert saved.hyperparameters["lr"] == 0.5
    assert saved.model.counters == {"global_steps": 4, "global_samples": 8, "skipped_steps": 0}
    assert saved.scaler == ({"loss_scaler": "scaler"} if write is write_stage2 else {})
    for name, state in states.items():
        for key in KEYS:
            flat = state[key].flatten()
            for start in range(len(flat)):
                for stop in (start, start + 1, len(flat)):
                    assert torch.equal(saved.read(name, key, start, stop), flat[start:stop])


def test_another_model_is_named(states, tmp_path):
    write_stage2(tmp_path, states)
    with pytest.raises(CheckpointError, match="parameters of only one of the two: c, d"):
        SavedStates(tmp_path, ["a", "b", "d"])


@pytest.mark.parametrize("rank", range(RANKS))
def test_a_missing_rank_is_noticed(rank, states, tmp_path):
    write_stage3(tmp_path, states)
    (tmp_path / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt").unlink()
    with pytest.raises(CheckpointError, match="is not arranged as DeepSpeed writes checkpoints"):
        SavedStates(tmp_path, list(SHAPES))


def test_files_that_are_not_deepspeeds_are_an_error(tmp_path):
    with pytest.raises(CheckpointError, match="is not arranged as DeepSpeed writes checkpoints"):
        SavedStates(tmp_path, ["a"])
    torch.save({"module": {}}, tmp_path / "mp_rank_00_model_states.pt")
    with pytest.raises(CheckpointError, match="is not arranged as DeepSpeed writes checkpoints"):
        SavedStates(tmp_path, ["a"])
