"""Status of a rank: its phase, step and line of code. Every rank reports it once a second.

phase, step, line of code -> RankStatus -> (store, see status_store.py) -> StatusHistory of all ranks
StatusHistory -> the slowest ranks, silent ranks, seconds without progress -> verdicts.py
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import FrameType

_PROJECT = str(Path(__file__).resolve().parents[1]) + os.sep
# Folders of the code that communicates with other ranks. A rank whose innermost frame is there waits for them.
_WAITING = tuple(os.sep + os.path.join(*parts) + os.sep for parts in (("torch", "distributed"), ("deepspeed", "comm")))


@dataclasses.dataclass(frozen=True, kw_only=True)
class RankStatus:
    """Status of one rank, as it reports it.

    Attributes:
        heartbeat: number of reports so far; it grows as long as the process runs.
        phases: number of phases entered. All ranks enter the same phases, so equal numbers mean equal progress.
        ticks: number of reports of progress within phases.
        phase: name of the current phase.
        step: current global step; 0 before the first.
        seconds: time since the last new phase or tick.
        line: the innermost line of this project on the main thread's stack, as file:line.
        waits: whether the main thread waits for other ranks.
        failure: the error that ends the rank, as its last report says; empty while it runs.
    """

    heartbeat: int
    phases: int
    ticks: int
    phase: str
    step: int
    seconds: float
    line: str
    waits: bool
    failure: str = ""

    def __str__(self) -> str:
        return f"{self.phase}{f' of step {self.step}' if self.step else ''}, at {self.line}"

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str | bytes) -> RankStatus:
        return cls(**json.loads(text))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Peer:
    """Process of a rank, as published to the other ranks.

    Attributes:
        local_rank: number of the rank on its machine, from 0.
        pid: process id on its machine.
        host: name of its machine.
        machine: identity of machine and process namespace; processes with the same value can see each other's pid.
        device: kind of device that it computes on: cpu, cuda, ...
        devices: number of such devices that it sees; 0 on a CPU, which ranks share.
    """

    local_rank: int
    pid: int
    host: str
    machine: str
    device: str
    devices: int

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str | bytes) -> Peer:
        return cls(**json.loads(text))


def locate(frame: FrameType | None) -> tuple[str, bool]:
    """The innermost line of this project on a thread's stack, and whether the thread waits for other ranks."""
    if frame is None:
        return "the end of its process", False
    code = frame.f_code
    # `meet` is Watch.meet; `wait` is a method of the store and of asynchronous collectives.
    waits = code.co_name in ("meet", "wait") or any(part in code.co_filename for part in _WAITING)
    # The innermost frame may be in torch or the standard library; a user needs the line of this project that called it.
    ours: FrameType | None = frame
    while ours is not None and not ours.f_code.co_filename.startswith(_PROJECT):
        ours = ours.f_back
    if ours is None:
        return f"{Path(code.co_filename).name}:{frame.f_lineno}", waits
    return f"{ours.f_code.co_filename.removeprefix(_PROJECT)}:{ours.f_lineno}", waits


def slowest_ranks(statuses: Mapping[int, RankStatus]) -> list[int]:
    """The ranks that the others wait for.

    They have entered the fewest phases. If some of these compute while others wait for communication, only the ones
    that compute are returned.
    """
    fewest = min(status.phases for status in statuses.values())
    last = [rank for rank, status in statuses.items() if status.phases == fewest]
    # Ranks in the same phase: one computes, and the others wait for it in the phase's collective.
    computing = [rank for rank in last if not statuses[rank].waits]
    return computing or last


def name_ranks(ranks: Iterable[int]) -> str:
    """Text that names ranks: `rank 3`, `ranks 0-2, 5`."""
    numbers = sorted(ranks)
    ranges: list[list[int]] = []
    for number in numbers:
        if ranges and number == ranges[-1][1] + 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    shown = ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in ranges)
    return f"rank{'s' if len(numbers) > 1 else ''} {shown}"


def name_ranks_by_host(ranks: Iterable[int], hosts: Sequence[str]) -> str:
    """Text that names ranks, with their hosts if there are several: `ranks 0-1 on a, rank 2 on b`.

    Args:
        ranks: the ranks to name.
        hosts: host name of every rank.
    """
    if len(set(hosts)) == 1:
        return name_ranks(ranks)
    by_host: dict[str, list[int]] = {}
    for rank in ranks:
        by_host.setdefault(hosts[rank], []).append(rank)
    return ", ".join(f"{name_ranks(some)} on {host}" for host, some in by_host.items())


class StatusHistory:
    """Latest status of every rank, and the time of its last change.

    Times are seconds of this process's monotonic clock, since the clocks of machines may differ.

    Attributes:
        statuses: the latest status by rank; empty before the first record.
    """

    def __init__(self) -> None:
        self.statuses: dict[int, RankStatus] = {}
        self._progress_at: dict[int, float] = {}
        self._heartbeat_at: dict[int, float] = {}

    def record(self, statuses: Mapping[int, RankStatus], now: float) -> None:
        """Record the statuses that were read from the store at time `now`."""
        for rank, status in statuses.items():
            before = self.statuses.get(rank)
            if before is None or (status.phases, status.ticks) != (before.phases, before.ticks):
                # The first status of a rank says itself how long ago the rank made progress.
                self._progress_at[rank] = now - (status.seconds if before is None else 0.0)
            # Another heartbeat alone is a sign of life, but no progress.
            if before is None or status.heartbeat != before.heartbeat:
                self._heartbeat_at[rank] = now
            self.statuses[rank] = status

    def seconds_without_progress(self, now: float) -> float:
        """Seconds since any rank made progress."""
        return now - max(self._progress_at.values(), default=now)

    def silent_ranks(self, now: float, seconds: float) -> list[int]:
        """Ranks whose heartbeat has not changed for more than `seconds`."""
        return [rank for rank, since in self._heartbeat_at.items() if now - since > seconds]
