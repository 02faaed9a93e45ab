"""Reads DeepSpeed's checkpoint files: file names, keys, and the order of parameters in flattened states.

    mp_rank_00_model_states.pt, or zero_pp_rank_0_*_model_states.pt at ZeRO-3    -> ModelFile
    *zero_pp_rank_<rank>_mp_rank_00_optim_states.pt, one per rank                -> ShardFile

Files are mapped into memory: a tensor is read from the disk when its elements are used.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

# Keys of a rank's file: flat float32 weights, and the state of the optimizer that DeepSpeed's optimizer wraps.
STAGE3_KEYS = ("fp32_flat_groups", "optimizer_state_dict")
STAGE2_KEYS = ("single_partition_of_fp32_groups", "base_optimizer_state")  # stage 1 also
_SLICES = "param_slice_mappings"
_SCALER_KEYS = ("loss_scaler", "dynamic_loss_scale", "overflow")
# Attributes of an engine, and keys of its model file.
_COUNTERS = ("global_steps", "global_samples", "skipped_steps")


class ModelFile:
    """Rank 0's model file. Its properties raise KeyError if the file lacks them."""

    def __init__(self, path: Path) -> None:
        self._values = _load(path)

    @property
    def ranks(self) -> int:
        """World size of the run that wrote it."""
        return self._values["dp_world_size"]

    @property
    def weights(self) -> Mapping[str, Tensor]:
        """Parameters and buffers; at ZeRO-3 the parameters are empty."""
        return self._values["module"]

    @property
    def optimizer(self) -> Mapping[str, Any]:
        """At stage 0: the optimizer's state_dict."""
        return self._values["optimizer"]

    @property
    def shapes(self) -> Sequence[Mapping[str, torch.Size]]:
        """At ZeRO-3: the parameters of each flat group, in order."""
        return self._values["param_shapes"]

    @property
    def frozen(self) -> Mapping[str, tuple[torch.Size, Tensor]]:
        """At ZeRO-3: shape, and this rank's flat share, of each parameter that the optimizer does not have."""
        shapes = self._values.get("frozen_param_shapes") or {}
        return {name: (shape, self._values["frozen_param_fragments"][name]) for name, shape in shapes.items()}

    @property
    def scheduler(self) -> Mapping[str, Any]:
        """The learning-rate scheduler's state_dict."""
        return self._values["lr_scheduler"]

    @property
    def counters(self) -> dict[str, int]:
        """The engine's counters: attribute name -> value."""
        return {name: self._values[name] for name in _COUNTERS}


@dataclasses.dataclass(frozen=True, kw_only=True)
class SavedRange:
    """Elements that a rank saved of one parameter.

    Attributes:
        name: the parameter.
        offset: index of its first saved element in the rank's flat tensor.
        numel: how many elements.
    """

    name: str
    offset: int
    numel: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShardFile:
    """One rank's optimizer file, of ZeRO stages 1 to 3.

    Attributes:
        masters: float32 weights, one flat tensor per group.
        optimizer: state_dict of the wrapped optimizer; its states are flat like the masters.
        scaler: DeepSpeed's loss scaling.
        ranges: per group, the saved range of each parameter, in the order of parameters.
    """

    masters: Sequence[Tensor]
    optimizer: Mapping[str, Any]
    scaler: Mapping[str, Any]
    ranges: Sequence[Sequence[SavedRange]]


def model_file(folder: Path) -> Path:
    """Path of rank 0's model file.

    Raises:
        ValueError: there is none, or more than one.
    """
    found = [*folder.glob("mp_rank_00_model_states.pt"), *folder.glob("zero_pp_rank_0_*_model_states.pt")]
    if len(found) != 1:
        raise ValueError(f"{len(found)} model files of rank 0")
    return found[0]


def model_files(folder: Path) -> list[Path]:
    """Paths of all ranks' model files, in the order of ranks; below ZeRO-3 one file.

    Raises:
        ValueError: there is none, or one of a rank is missing.
    """
    first = model_file(folder)
    if not first.name.startswith("zero_pp_rank"):
        return [first]
    found = sorted((rank_of_file(path.name) or 0, path) for path in folder.glob("zero_pp_rank_*_model_states.pt"))
    if [rank for rank, _ in found] != list(range(len(found))):
        raise ValueError(f"model files of ranks {[rank for rank, _ in found]}")
    return [path for _, path in found]


def shard_files(folder: Path) -> list[Path]:
    """Paths of all ranks' optimizer files, in the order of ranks; none at stage 0.

    Raises:
        ValueError: a name has no rank, a rank has two files, or a rank before the last has none.
    """
    found = []
    for path in folder.glob("*_optim_states.pt"):
        rank = rank_of_file(path.name)
        if rank is None:
            raise ValueError(f"{path.name} has no rank in its name")
        found.append((rank, path))
    # As numbers: rank 10 comes after rank 9, not after rank 1.
    found.sort()
    ranks = [rank for rank, _ in found]
    if ranks != list(range(len(ranks))):
        raise ValueError(f"optimizer files of ranks {ranks}")
    return [path for _, path in found]


def rank_of_file(name: str) -> int | None:
    """The rank in a file's name; None if it has none: then rank 0 wrote it."""
    match = re.search(r"(?:_pp|^reference)_rank_(\d+)", name)
    return int(match[1]) if match else None


def read_shard_file(path: Path, model: ModelFile, rank: int) -> ShardFile:
    """Read a rank's optimizer file.

    Args:
        path: the file.
        model: the checkpoint's model file.
        rank: the rank that wrote it.

    Raises:
        KeyError: a key is missing.
    """
    values = _load(path)["optimizer_state_dict"]
    stage3 = STAGE3_KEYS[0] in values
    masters, optimizer = (values[key] for key in (STAGE3_KEYS if stage3 else STAGE2_KEYS))
    if stage3:
        ranges = [list(_stage3_ranges(shapes, rank, model.ranks)) for shapes in model.shapes]
    else:
        ranges = [
            [SavedRange(name=name, offset=part.start, numel=part.numel) for name, part in group.items()]
            for group in values[_SLICES]
        ]
    scaler = {key: values[key] for key in _SCALER_KEYS if key in values}
    return ShardFile(masters=masters, optimizer=optimizer, scaler=scaler, ranges=ranges)


def _stage3_ranges(shapes: Mapping[str, torch.Size], rank: int, ranks: int) -> Iterator[SavedRange]:
    """ZeRO-3 pads each parameter to a multiple of the ranks, and gives each rank an equal part of it."""
    offset = 0
    for name, shape in shapes.items():
        numel = math.prod(shape)
        part = math.ceil(numel / ranks)
        # The last ranks own less than a part, or nothing: the rest of their part is padding.
        start, stop = (min(edge * part, numel) for edge in (rank, rank + 1))
        yield SavedRange(name=name, offset=offset, numel=stop - start)
        offset += part


def _load(path: Path) -> dict[str, Any]:
    # Imported here, because programs that only compare checkpoints' files need no DeepSpeed.
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    # DeepSpeed's own objects in its files. Nothing else is unpickled, because a pickle can run code.
    with torch.serialization.safe_globals([LossScaler, DynamicLossScaler, ZeroStageEnum, fragment_address]):
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
