"""Identity of one rank, and its only means of waiting for the others without a time limit.

engine/start.py -> World -> functions that compute with the rank or talk to other ranks (ranks/collectives.py)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable

import torch

from minimind.ranks.status import name_ranks_by_host


def _wait_for_nobody() -> None:
    """Default of `World.meet`, for a process without other ranks."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class World:
    """One rank among all ranks.

    Attributes:
        rank: number of this rank, from 0 to size - 1.
        local_rank: its number on its machine, from 0.
        size: number of ranks.
        device: the device of this rank's tensors.
        hosts: host name of every rank, `size` of them.
        meet: waits until all ranks have called it, however long the slowest takes, as long as any rank makes progress.
            A collective would fail at torch's time limit.
    """

    rank: int
    local_rank: int
    size: int
    device: torch.device
    hosts: tuple[str, ...] = ("localhost",)
    # Not part of a rank's identity.
    meet: Callable[[], None] = dataclasses.field(default=_wait_for_nobody, repr=False, compare=False)

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @property
    def on_cpu(self) -> bool:
        return self.device.type == "cpu"

    @property
    def pins_memory(self) -> bool:
        """Whether copies from page-locked memory to this rank's device are asynchronous, and only these."""
        return self.device.type == "cuda"

    def name(self, ranks: Iterable[int]) -> str:
        """Text that names ranks, with their hosts if there are several: `ranks 0-1 on a, rank 2 on b`."""
        return name_ranks_by_host(ranks, self.hosts)
