"""Loads a checkpoint under another number of ranks or another ZeRO stage: weights and optimizer states are resharded.

    files of all ranks -> SavedStates: parameter -> pieces -> read(name, key, start, stop)
                       -> this rank's flat states -> DeepSpeed's own loader

DeepSpeed's universal checkpoints do not load between stages 2 and 3, and write all states a second time. Here nothing
is converted: files are mapped into memory and each rank reads only the elements that it owns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from minimind.engine.patches.checkpoint_files import (
    ModelFile,
    ShardFile,
    model_file,
    read_shard_file,
    shard_files,
)
from minimind.engine.patches.partitions import (
    flat_sizes,
    load_shard_state,
    make_shard_state,
    owned_ranges,
    wrapped_optimizer,
)
from minimind.errors import CheckpointError
from minimind.ranks.world import World

# Key of the float32 weights, beside the optimizer's own keys (exp_avg, ...).
MASTER = "fp32"
# Hyperparameters that change during a run; the others come from flags and the DeepSpeed file.
_SCHEDULED = ("lr", "initial_lr", "step")


@dataclass(frozen=True, kw_only=True)
class _Piece:
    """Elements `start` to `start + numel` of a flattened parameter, in each of its states."""

    start: int
    numel: int
    states: dict[str, Tensor]


class SavedStates:
    """The weights and optimizer states that all ranks of a run saved, by parameter.

    Attributes:
        model: rank 0's model file: schedule, counters, buffers.
        keys: names of a parameter's states: MASTER, and the optimizer's.
        scalars: states of the optimizer without a parameter's shape: its step count.
        hyperparameters: of the optimizer's parameter group, with the learning rate.
        scaler: DeepSpeed's loss scaling; empty at stage 0.

    Args:
        folder: the checkpoint.
        names: the model's parameters, in the model's order.
        on_progress: called for each state that is read and each file that is opened.

    Raises:
        CheckpointError: files that are not arranged as DeepSpeed writes them, or of another model.
    """

    def __init__(self, folder: Path, names: list[str], on_progress: Callable[[], object] = lambda: None) -> None:
        self.folder, self._on_progress = folder, on_progress
        self.scalars: dict[str, Any] = {}
        self.hyperparameters: dict[str, Any] = {}
        self.scaler: dict[str, Any] = {}
        self._pieces: dict[str, list[_Piece]] = {}
        try:
            # Everything in one `try`: a damaged file fails in many ways, and each of them means the same to the user.
            self.model = ModelFile(model_file(folder))
            shards = shard_files(folder)
            if shards and len(shards) != self.model.ranks:
                raise ValueError(f"optimizer files of {len(shards)} instead of {self.model.ranks} ranks")
            # In the order of ranks, on which the places of the pieces depend.
            for rank, path in enumerate(shards):
                self._on_progress()
                self._add_shard(read_shard_file(path, self.model, rank))
            if not shards:
                self._add_unsharded(names)
        except (OSError, ValueError, KeyError, IndexError, TypeError, RuntimeError) as error:
            raise CheckpointError(f"{folder}: is not arranged as DeepSpeed writes checkpoints ({error!r})") from error
        # By names, not by sizes: layers of one size could be exchanged without notice.
        if set(names) != set(self._pieces):
            differing = ", ".join(sorted(set(names) ^ set(self._pieces)))
            raise CheckpointError(f"{folder}: belongs to another model; parameters of only one of the two: {differing}")
        # All parameters have the same states, because they are in one group of one optimizer.
        self.keys = list(self._pieces[names[0]][0].states)

    def read(self, name: str, key: str, start: int, stop: int) -> Tensor:
        """Elements `start` to `stop` of a parameter's flattened state, (stop - start,) float32.

        Raises:
            CheckpointError: the files do not have all of these elements.
        """
        self._on_progress()
        # Counted, not assumed: `empty` would hand on whatever was in memory for a gap.
        out, missing = torch.empty(stop - start), stop - start
        for piece in self._pieces[name]:
            low, high = max(start, piece.start), min(stop, piece.start + piece.numel)
            if low < high:
                out[low - start : high - start] = piece.states[key][low - piece.start : high - piece.start]
                missing -= high - low
        if missing:
            raise CheckpointError(f"{self.folder}: {missing} elements of {name} ({key}) are missing")
        return out

    def _add_shard(self, shard: ShardFile) -> None:
        """Add one rank's file, of stages 1 to 3; ranks must be added in order."""
        self._add_optimizer(shard.optimizer)
        self.scaler = dict(shard.scaler)
        for group, (master, ranges) in enumerate(zip(shard.masters, shard.ranges, strict=True)):
            flat = {MASTER: master, **_with_shape(shard.optimizer["state"].get(group, {}))}
            for saved in ranges:
                cut = {key: values[saved.offset : saved.offset + saved.numel] for key, values in flat.items()}
                pieces = self._pieces.setdefault(saved.name, [])
                # At every stage, a rank's elements of a parameter follow those of the ranks before it.
                start = sum(piece.numel for piece in pieces)
                pieces.append(_Piece(start=start, numel=saved.numel, states=cut))

    def _add_unsharded(self, names: list[str]) -> None:
        """Add the states of stage 0: torch's own optimizer numbers them in the order of the model's parameters."""
        optimizer = self.model.optimizer
        self._add_optimizer(optimizer)
        for number, name in enumerate(names):
            states = {MASTER: self.model.weights[name], **_with_shape(optimizer["state"].get(number, {}))}
            flat = {key: values.reshape(-1) for key, values in states.items()}
            self._pieces[name] = [_Piece(start=0, numel=flat[MASTER].numel(), states=flat)]

    def _add_optimizer(self, optimizer: Mapping[str, Any]) -> None:
        """Keep what is equal on all ranks."""
        # Of an optimizer with more than one group this raises a ValueError, which `__init__` turns into its error.
        (self.hyperparameters,) = optimizer["param_groups"]
        for state in optimizer["state"].values():
            self.scalars = {key: value for key, value in state.items() if key not in _with_shape(state)}


def load_resharded(engine: Any, folder: Path, world: World, on_progress: Callable[[], object] = lambda: None) -> None:
    """Load a checkpoint of any ZeRO stage and number of ranks into an engine of any other. All ranks must call.

    Raises:
        CheckpointError: the files do not fit the model, or the optimizer's states cannot be resharded.
    """
    stage, optimizer = engine.zero_optimization_stage(), engine.optimizer
    base = wrapped_optimizer(optimizer, stage)
    # Muon has a group of matrices and one of the rest; 8-bit states belong to blocks of elements.
    known = isinstance(base, torch.optim.Optimizer) and len(base.param_groups) == 1
    if not known or type(base).__module__.startswith("bitsandbytes"):
        raise CheckpointError(
            f"{folder}: states of optimizer {type(base).__name__} cannot be resharded; resume with the number of ranks "
            "and the ZeRO stage that the checkpoint was written with"
        )
    # In the model's order, because stage 0's optimizer knows its parameters by number only.
    parameters = {name: p for name, p in engine.module.named_parameters() if p.requires_grad}
    saved = SavedStates(folder, list(parameters), on_progress)
    if stage == 0:
        base.load_state_dict(_unsharded_state(base, parameters, saved))
    else:
        state = _shard_state(optimizer, parameters, saved, stage, world.rank)
        load_shard_state(optimizer, stage, state, world.rank, world.size)
    # At stage 3 DeepSpeed's loader has already set the weights from their float32 partitions.
    _load_rest(engine, parameters if stage < 3 else {}, saved)


def _unsharded_state(base: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter], saved: SavedStates) -> dict:
    """The state_dict of torch's own optimizer over whole parameters, for stage 0."""
    states = {
        number: {
            **{key: saved.read(name, key, 0, p.numel()).view_as(p) for key in saved.keys if key != MASTER},
            **_scalars(base, saved),
        }
        for number, (name, p) in enumerate(parameters.items())
    }
    groups = [{**group, **_scheduled(saved)} for group in base.state_dict()["param_groups"]]
    return {"state": states, "param_groups": groups}


def _shard_state(
    optimizer: Any, parameters: Mapping[str, nn.Parameter], saved: SavedStates, stage: int, rank: int
) -> dict[str, Any]:
    """The state_dict that this rank would have written under this run's ranks and stage."""
    base = wrapped_optimizer(optimizer, stage)
    # Zeros, because DeepSpeed pads flat tensors and expects padding to be 0.
    flats = [{key: torch.zeros(size) for key in saved.keys} for size in flat_sizes(optimizer, stage)]
    for name, owned in owned_ranges(optimizer, parameters, stage, rank).items():
        for key in saved.keys:
            flat = flats[owned.group][key]
            flat[owned.offset : owned.offset + owned.stop - owned.start] = saved.read(
                name, key, owned.start, owned.stop
            )
    masters = [flat.pop(MASTER) for flat in flats]
    return make_shard_state(
        optimizer,
        stage,
        masters=masters,
        # An optimizer without states (SGD without momentum) has no entry.
        states={number: {**flat, **_scalars(base, saved)} for number, flat in enumerate(flats) if flat},
        hyperparameters=_scheduled(saved),
        scaler=saved.scaler,
    )


def _load_rest(engine: Any, weights: Mapping[str, nn.Parameter], saved: SavedStates) -> None:
    """Load the scheduler, the counters, the buffers, and the given weights."""
    for name, parameter in weights.items():
        # From the float32 weights, whose rounding is the 16-bit weight: the file of 16-bit weights is not read.
        parameter.data.copy_(saved.read(name, MASTER, 0, parameter.numel()).view_as(parameter))
    for name, buffer in engine.module.named_buffers():
        if name in saved.model.weights:
            buffer.copy_(saved.model.weights[name])
    # The scheduler and the counters do not depend on ranks or stage.
    engine.lr_scheduler.load_state_dict(saved.model.scheduler)
    for name, value in saved.model.counters.items():
        setattr(engine, name, value)


def _scheduled(saved: SavedStates) -> dict[str, Any]:
    """The saved hyperparameters that change during a run."""
    return {key: value for key, value in saved.hyperparameters.items() if key in _SCHEDULED}


def _scalars(base: torch.optim.Optimizer, saved: SavedStates) -> dict[str, Any]:
    """The saved step count in this optimizer's type: torch's optimizers keep a tensor, DeepSpeed's an int."""
    torch_own = type(base).__module__.startswith("torch.")
    convert = (lambda value: torch.tensor(float(value))) if torch_own else int
    return {key: convert(value) if key == "step" else value for key, value in saved.scalars.items()}


def _with_shape(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """The states that have a parameter's shape."""
    return {key: value for key, value in state.items() if isinstance(value, Tensor) and value.dim() > 0}
