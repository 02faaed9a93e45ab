"""A reference that follows the policy (`--reference_update`): its weights, their float32 average, and its checkpoint.

    policy's float32 weights, this rank's share -> average = share * policy + (1 - share) * average -> reference's shard
    checkpoint folder/reference_rank_00000.pt: this rank's share of every average

Each rank moves its own elements of the reference's ZeRO-3 shard. Under ZeRO-3 the policy is cut alike, and nothing is
sent; at lower stages one whole parameter after the other is gathered.

The average is kept in float32 beside a 16-bit shard: with a share of 0.01 a step is far smaller than a rounding error
of bfloat16, and an average in bfloat16 would never move. A hard update needs no average.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from minimind.engine.build import own_range
from minimind.engine.patches.partitions import full_numel, shard_of
from minimind.engine.policy import Policy
from minimind.engine.reference import LiveReference
from minimind.errors import CheckpointError
from minimind.objective.reference_update import ReferenceUpdate
from minimind.weights.sources import WeightSource

# A rank's file in a checkpoint; `rank_of_file` finds the rank.
_FILE = "reference_rank_{:05d}.pt"


class MovingReference:
    """Moves a live reference towards the policy.

    Args:
        reference: the live reference, with its start weights.
        source: these weights, of the policy's configuration.
        update: when and how far it moves.
    """

    def __init__(self, reference: LiveReference, source: WeightSource, update: ReferenceUpdate) -> None:
        self._reference, self._update, self._world = reference, update, reference.world
        parameters = dict(reference.engine.module.model.named_parameters())
        self._sizes = {name: full_numel(parameter) for name, parameter in parameters.items()}
        self._shards: dict[str, Tensor] = {}
        self._averages: dict[str, Tensor] = {}
        for name, parameter in parameters.items():
            start, stop = own_range(self._sizes[name], self._world)
            shard = self._shards[name] = shard_of(parameter).narrow(0, 0, stop - start)
            if update.hard or shard.dtype == torch.float32:
                self._averages[name] = shard
            else:
                own = source.read(name).flatten()[start:stop]
                self._averages[name] = own.to(shard.device, torch.float32, copy=True)

    def after_step(self, step: int, policy: Policy) -> None:
        """Move the reference if it is due after this global step. All ranks must call."""
        if self._update.due(step):
            self.move(policy)

    @torch.no_grad()
    def move(self, policy: Policy) -> None:
        """Move every trained parameter; frozen ones are those that policy and reference started with."""
        for name, value in policy.own_weights():
            average = self._averages[name]
            if self._update.hard:
                average.copy_(value)
            else:
                average.lerp_(value.to(average.device), self._update.share)
        self._apply()

    def write(self, folder: Path) -> None:
        """Write this rank's share into a checkpoint.

        Raises:
            OSError: the file cannot be written.
        """
        # One file a rank, with its share alone; `ranks` tells a reader whether all of them are there.
        values = {name: average.cpu() for name, average in self._averages.items()}
        try:
            torch.save({"ranks": self._world.size, "averages": values}, folder / _FILE.format(self._world.rank))
        except RuntimeError as error:
            # torch's zip writer turns the OSError of a full disk into a RuntimeError.
            raise OSError(str(error)) from error

    @torch.no_grad()
    def read(self, folder: Path) -> None:
        """Take the reference of a checkpoint, which may have been written on another number of ranks.

        Raises:
            CheckpointError: a file is missing, or belongs to another model.
        """
        try:
            files = [_load(path) for path in sorted(folder.glob(_FILE.replace("{:05d}", "*")))]
            if not files or any(one["ranks"] != len(files) for one in files):
                raise ValueError(f"{len(files)} files of the reference")
            for name, average in self._averages.items():
                # Mapped, not read: a rank copies only the part that is its own now.
                whole = [one["averages"][name] for one in files]
                if sum(map(len, whole)) != self._sizes[name]:
                    raise ValueError(f"the reference's {name} has another size")
                _copy_range(average, whole, own_range(self._sizes[name], self._world)[0])
        except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
            raise CheckpointError(f"{folder}: has no reference that this run can take ({error})") from error
        self._apply()

    def _apply(self) -> None:
        """Round the averages into the shard, and drop what DeepSpeed has gathered of the old one."""
        for name, shard in self._shards.items():
            if self._averages[name] is not shard:
                shard.copy_(self._averages[name])
        self._reference.release_gathered()


def _load(path: Path) -> dict:
    return torch.load(path, map_location="cpu", weights_only=True, mmap=True)


def _copy_range(out: Tensor, parts: list[Tensor], start: int) -> None:
    """Copy elements `start` to `start + len(out)` of a tensor that is cut into parts."""
    offset = 0
    for part in parts:
        low, high = max(start, offset), min(start + len(out), offset + len(part))
        if low < high:
            out[low - start : high - start].copy_(part[low - offset : high - offset])
        offset += len(part)
