"""Going on elsewhere: a checkpoint's weights and optimizer states, cut anew for other ranks or another ZeRO stage.

    files of all ranks -> SavedStates: name -> pieces -> read(name, key, start, stop)
                       -> this rank's partitions -> DeepSpeed's own loader

DeepSpeed's universal checkpoints fail between stages 2 and 3, and write everything a second time. Nothing is converted
here: files are mapped into memory and each rank reads the pieces that are its own, so that what is sharded stays so.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from minimind.errors import CheckpointError
from minimind.ranks.world import World

# The float32 weights, beside the optimizer's own keys (exp_avg, ...).
MASTER = "fp32"
# Where DeepSpeed keeps float32 weights and the optimizer's state in a rank's file.
_KEYS = {
    True: ("fp32_flat_groups", "optimizer_state_dict"),  # at stage 3
    False: ("single_partition_of_fp32_groups", "base_optimizer_state"),
}


@dataclass(frozen=True, kw_only=True)
class _Piece:
    """Elements `start` to `start + numel` of a flattened parameter, in each of its states."""

    start: int
    numel: int
    states: dict[str, Tensor]


class SavedStates:
    """What the ranks of a run wrote, by parameter.

    Attributes:
        common: rank 0's model file: schedule, counters, buffers.
        keys: the states that parameters have: MASTER, and the optimizer's.
        scalars: the optimizer's states that are not of a parameter's shape: its step count.
        hyperparameters: of the optimizer's parameter group; the learning rate among them.
        scaler: DeepSpeed's loss scaling; empty at stage 0.

    Args:
        folder: the checkpoint.
        names: the model's parameters, in the model's order.
        on_progress: called for each state that is read and each file that is opened.

    Raises:
        CheckpointError: files that are not laid out as DeepSpeed does, or not of this model.
    """

    def __init__(self, folder: Path, names: list[str], on_progress: Callable[[], object] = lambda: None) -> None:
        self.folder, self._on_progress = folder, on_progress
        self.scalars: dict[str, Any] = {}
        self.hyperparameters: dict[str, Any] = {}
        self.scaler: dict[str, Any] = {}
        self._pieces: dict[str, list[_Piece]] = {}
        try:
            (model,) = [*folder.glob("mp_rank_00_model_states.pt"), *folder.glob("zero_pp_rank_0_*_model_states.pt")]
            self.common = _mapped(model)
            shards = sorted(folder.glob("*_optim_states.pt"), key=_rank_of)
            if shards and [_rank_of(shard) for shard in shards] != list(range(self.common["dp_world_size"])):
                raise ValueError(f"{len(shards)} files of {self.common['dp_world_size']} ranks")
            for rank, shard in enumerate(shards):
                self._add_shard(_mapped(shard)["optimizer_state_dict"], rank, len(shards))
            if not shards:
                self._add_whole(names)
        except (OSError, ValueError, KeyError, IndexError, TypeError, RuntimeError) as error:
            raise CheckpointError(f"{folder}: is not laid out as DeepSpeed does ({error!r})") from error
        if set(names) != set(self._pieces):
            differing = ", ".join(sorted(set(names) ^ set(self._pieces)))
            raise CheckpointError(f"{folder}: is of another model; only one of the two has {differing}")
        self.keys = list(self._pieces[names[0]][0].states)

    def read(self, name: str, key: str, start: int, stop: int) -> Tensor:
        """Elements `start` to `stop` of a parameter's flattened state, (stop - start,) float32."""
        self._on_progress()
        out, missing = torch.empty(stop - start), stop - start
        for piece in self._pieces[name]:
            low, high = max(start, piece.start), min(stop, piece.start + piece.numel)
            if low < high:
                out[low - start : high - start] = piece.states[key][low - piece.start : high - piece.start]
                missing -= high - low
        if missing:
            raise CheckpointError(f"{self.folder}: lacks {missing} elements of {name} ({key})")
        return out

    def _add_shard(self, saved: Mapping[str, Any], rank: int, ranks: int) -> None:
        """One rank's file, of stages 1 to 3: flat rows, and where in them the parameters lie."""
        self._on_progress()
        stage3 = _KEYS[True][0] in saved
        masters, optimizer = (saved[key] for key in _KEYS[stage3])
        self._add_optimizer(optimizer)
        self.scaler = {key: saved[key] for key in ("loss_scaler", "dynamic_loss_scale", "overflow") if key in saved}
        for group, master in enumerate(masters):
            flat = {MASTER: master, **_shaped(optimizer["state"].get(group, {}))}
            if stage3:
                places = _stage3_places(self.common["param_shapes"][group], rank, ranks)
            else:
                places = self._stage2_places(saved["param_slice_mappings"][group])
            for name, start, offset, numel in places:
                cut = {key: values[offset : offset + numel] for key, values in flat.items()}
                self._pieces.setdefault(name, []).append(_Piece(start=start, numel=numel, states=cut))

    def _stage2_places(self, mappings: Mapping[str, Any]) -> Iterator[tuple[str, int, int, int]]:
        """Stages 1 and 2 cut one long row of all parameters: a rank's piece of one follows the piece of the last."""
        for name, fragment in mappings.items():
            start = sum(piece.numel for piece in self._pieces.get(name, []))
            yield name, start, fragment.start, fragment.numel

    def _add_whole(self, names: list[str]) -> None:
        """Stage 0: the optimizer is torch's own, its states numbered in the order of the model's parameters."""
        optimizer = self.common["optimizer"]
        self._add_optimizer(optimizer)
        for number, name in enumerate(names):
            states = {MASTER: self.common["module"][name], **_shaped(optimizer["state"].get(number, {}))}
            flat = {key: values.reshape(-1) for key, values in states.items()}
            self._pieces[name] = [_Piece(start=0, numel=flat[MASTER].numel(), states=flat)]

    def _add_optimizer(self, optimizer: Mapping[str, Any]) -> None:
        (self.hyperparameters,) = optimizer["param_groups"]
        for state in optimizer["state"].values():
            self.scalars = {key: value for key, value in state.items() if key not in _shaped(state)}


def load_resharded(engine: Any, folder: Path, world: World, on_progress: Callable[[], object] = lambda: None) -> None:
    """Load a checkpoint of any stage and number of ranks into an engine of any other.

    Raises:
        CheckpointError: the files do not fit the model, or the optimizer's states cannot be cut.
    """
    parameters = {name: p for name, p in engine.module.named_parameters() if p.requires_grad}
    saved = SavedStates(folder, list(parameters), on_progress)
    stage, optimizer = engine.zero_optimization_stage(), engine.optimizer
    base = optimizer.optimizer if stage else optimizer
    if not isinstance(base, torch.optim.Optimizer):
        raise CheckpointError(
            f"{folder}: cannot go on with other ranks or another stage under {type(base).__name__}; use those it had"
        )
    if stage == 0:
        base.load_state_dict(_whole_state(base, parameters, saved))
    else:
        shards: list[dict[str, Any] | None] = [None] * world.size
        shards[world.rank] = _shard_state(optimizer, parameters, saved, stage, world.rank)
        if stage == 3:
            optimizer.checkpoint_event_prologue()
        optimizer.load_state_dict(shards, load_from_fp32_weights=True)
        if stage == 3:
            optimizer.checkpoint_event_epilogue()
    # At stage 3 DeepSpeed has made the weights of their float32 partitions.
    _load_rest(engine, parameters if stage < 3 else {}, saved)


def _whole_state(base: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter], saved: SavedStates) -> dict:
    """The state of torch's own optimizer over whole parameters."""
    states = {
        number: {
            **{key: saved.read(name, key, 0, p.numel()).view_as(p) for key in saved.keys if key != MASTER},
            **_scalars(base, saved),
        }
        for number, (name, p) in enumerate(parameters.items())
    }
    return {"state": states, "param_groups": _param_groups(base.state_dict(), saved)}


def _shard_state(
    optimizer: Any, parameters: Mapping[str, nn.Parameter], saved: SavedStates, stage: int, rank: int
) -> dict[str, Any]:
    """What this rank would have written, had the run been cut as this one is."""
    masters, inner = _KEYS[stage == 3]
    base = optimizer.optimizer
    flats = optimizer.fp32_partitioned_groups_flat if stage == 3 else [g["params"][0] for g in base.param_groups]
    cut = [{key: torch.zeros(flat.numel()) for key in saved.keys} for flat in flats]
    for name, parameter in parameters.items():
        place = _stage3_place(optimizer, parameter, rank) if stage == 3 else _stage2_place(parameter)
        if place is not None:
            group, offset, start, stop = place
            for key in saved.keys:
                cut[group][key][offset : offset + stop - start] = saved.read(name, key, start, stop)
    state = {**optimizer.state_dict(), **saved.scaler, masters: [states.pop(MASTER) for states in cut]}
    state[inner] = {
        "state": {number: {**states, **_scalars(base, saved)} for number, states in enumerate(cut) if states},
        "param_groups": _param_groups(state[inner], saved),
    }
    return state


def _load_rest(engine: Any, weights: Mapping[str, nn.Parameter], saved: SavedStates) -> None:
    """Schedule, counters and buffers, and the weights that no partition holds."""
    for name, parameter in weights.items():
        parameter.data.copy_(saved.read(name, MASTER, 0, parameter.numel()).view_as(parameter))
    for name, buffer in engine.module.named_buffers():
        if name in saved.common["module"]:
            buffer.copy_(saved.common["module"][name])
    engine.lr_scheduler.load_state_dict(saved.common["lr_scheduler"])
    for counter in ("global_steps", "global_samples", "skipped_steps"):
        setattr(engine, counter, saved.common[counter])


def _stage2_place(parameter: Any) -> tuple[int, int, int, int] | None:
    """Which flat row, from where in it, holds which elements of a parameter on this rank; None if it holds none."""
    mapping = parameter._hp_mapping
    if mapping is None:
        return None
    own = mapping.lp_fragment_address
    return mapping.param_group_index, mapping.hp_fragment_address.start, own.start, own.start + own.numel


def _stage3_place(optimizer: Any, parameter: Any, rank: int) -> tuple[int, int, int, int]:
    """The same at stage 3, where each parameter is cut by itself, and padded."""
    group, offset, part = optimizer.grad_position[optimizer.get_param_id(parameter)]
    start, stop = (min(edge * part, parameter.ds_numel) for edge in (rank, rank + 1))
    return group, offset, start, stop


def _stage3_places(shapes: Mapping[str, Any], rank: int, ranks: int) -> Iterator[tuple[str, int, int, int]]:
    offset = 0
    for name, shape in shapes.items():
        part = math.ceil(math.prod(shape) / ranks)
        start, stop = (min(edge * part, math.prod(shape)) for edge in (rank, rank + 1))
        yield name, start, offset, stop - start
        offset += part


def _param_groups(state: Mapping[str, Any], saved: SavedStates) -> list[dict[str, Any]]:
    """This run's parameter groups, with what moves while a run goes on; the rest flags and DeepSpeed file have set."""
    moved = {key: value for key, value in saved.hyperparameters.items() if key in ("lr", "initial_lr", "step")}
    return [{**group, **moved} for group in state["param_groups"]]


def _scalars(base: torch.optim.Optimizer, saved: SavedStates) -> dict[str, Any]:
    """The step count as this optimizer keeps it: torch's in a tensor, DeepSpeed's own in a number."""
    torch_own = type(base).__module__.startswith("torch.")
    as_kept = (lambda value: torch.tensor(float(value))) if torch_own else int
    return {key: as_kept(value) if key == "step" else value for key, value in saved.scalars.items()}


def _shaped(state: Mapping[str, Any]) -> dict[str, Tensor]:
    return {key: value for key, value in state.items() if isinstance(value, Tensor) and value.dim() > 0}


def _mapped(path: Path) -> dict[str, Any]:
    """A file that DeepSpeed wrote, its tensors left on the disk until they are read."""
    return torch.load(path, map_location="cpu", weights_only=False, mmap=True)


def _rank_of(path: Path) -> int:
    match = re.search(r"pp_rank_(\d+)_", path.name)
    if match is None:
        raise ValueError(f"{path.name} names no rank")
    return int(match[1])
