"""Where each rank is: what it says of itself once a second, and what follows from what all of them say.

phase, step, line of code -> Place -> (store) -> Ledger: who has moved, who is behind, who says nothing
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import FrameType

_PROJECT = str(Path(__file__).resolve().parents[1]) + os.sep
# Code in which a rank waits for the others.
_WAITING = tuple(os.sep + os.path.join(*parts) + os.sep for parts in (("torch", "distributed"), ("deepspeed", "comm")))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Place:
    """Where a rank is.

    Attributes:
        beat: counts up as long as the process lives.
        moves: phases entered; the same on ranks that are equally far, since all go through the same phases.
        ticks: progress within phases.
        phase, step: what it does, at which global step (0 before the first).
        seconds: since when it has not moved.
        line: the innermost line of this project that it is in.
        waits: whether it waits for other ranks there.
    """

    beat: int
    moves: int
    ticks: int
    phase: str
    step: int
    seconds: float
    line: str
    waits: bool

    def __str__(self) -> str:
        return f"{self.phase}{f' of step {self.step}' if self.step else ''}, at {self.line}"

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str | bytes) -> Place:
        return cls(**json.loads(text))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Peer:
    """A rank's process, as others see it.

    Attributes:
        local_rank, pid: its numbers on its machine.
        host: the name of its machine.
        machine: the same for processes that can see one another.
        device: the kind of device that it computes on: cpu, cuda, ...
        devices: how many of them it sees; 0 on a CPU, which ranks share.
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
    """The innermost line of this project in a thread's stack, and whether the thread waits for other ranks."""
    if frame is None:
        return "its end", False
    code = frame.f_code
    waits = code.co_name in ("meet", "wait") or any(part in code.co_filename for part in _WAITING)
    ours: FrameType | None = frame
    while ours is not None and not ours.f_code.co_filename.startswith(_PROJECT):
        ours = ours.f_back
    if ours is None:
        return f"{Path(code.co_filename).name}:{frame.f_lineno}", waits
    return f"{ours.f_code.co_filename.removeprefix(_PROJECT)}:{ours.f_lineno}", waits


def behind(places: Mapping[int, Place]) -> list[int]:
    """The ranks that the others wait for: those that have entered the fewest phases; among equals those at work."""
    fewest = min(place.moves for place in places.values())
    last = [rank for rank, place in places.items() if place.moves == fewest]
    working = [rank for rank in last if not places[rank].waits]
    return working or last


def name_ranks(ranks: Iterable[int]) -> str:
    """`rank 3`, `ranks 0-2, 5`."""
    numbers = sorted(ranks)
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    shown = ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
    return f"rank{'s' if len(numbers) > 1 else ''} {shown}"


def name_ranks_by_host(ranks: Iterable[int], hosts: Sequence[str]) -> str:
    """Ranks, and their machines where there are several; `hosts` are those of all ranks."""
    if len(set(hosts)) == 1:
        return name_ranks(ranks)
    by_host: dict[str, list[int]] = {}
    for rank in ranks:
        by_host.setdefault(hosts[rank], []).append(rank)
    return ", ".join(f"{name_ranks(some)} on {host}" for host, some in by_host.items())


class Ledger:
    """What the ranks have said, and when, by this process's own clock: the machines' clocks may differ."""

    def __init__(self) -> None:
        self.places: dict[int, Place] = {}
        self._moved: dict[int, float] = {}
        self._beaten: dict[int, float] = {}

    def note(self, places: Mapping[int, Place], now: float) -> None:
        """Take down what all ranks say at time `now` (seconds, monotonic)."""
        for rank, place in places.items():
            before = self.places.get(rank)
            if before is None or (place.moves, place.ticks) != (before.moves, before.ticks):
                # What is seen for the first time has stood still as long as it says.
                self._moved[rank] = now - (place.seconds if before is None else 0.0)
            if before is None or place.beat != before.beat:
                self._beaten[rank] = now
            self.places[rank] = place

    def quiet(self, now: float) -> float:
        """Seconds since any rank moved."""
        return now - max(self._moved.values(), default=now)

    def silent(self, now: float, seconds: float) -> list[int]:
        """Ranks that have not given a sign of life for so long."""
        return [rank for rank, beaten in self._beaten.items() if now - beaten > seconds]
