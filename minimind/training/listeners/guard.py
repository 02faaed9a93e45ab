"""The guard of a run (--guard): says once what goes wrong, and ends the run if it is asked to.

Log, Evaluated, Saved -> curves, kept with every checkpoint -> diagnosis/guard.py -> one line, Found, perhaps Halt
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from minimind.diagnosis.curves import Curves, Point
from minimind.diagnosis.guard import EVALUATED, LOGGED, OF_SETS, RULES
from minimind.diagnosis.pair_signals import HeldOut, signals, still_wrong
from minimind.diagnosis.rules.pairs import PAIRS, STILL_WRONG
from minimind.ranks.collectives import from_main
from minimind.ranks.world import World
from minimind.training.console import Console
from minimind.training.events import Evaluated, Event, Found, Halt, Listener, Log, Saved, Start
from minimind.training.findings import FindingsFile

# Points of a curve that are kept: the first and the latest ones.
_POINTS = 200
# Held-out pairs above which single pairs are not followed: they are written into every manifest.
_FOLLOWED = 20_000
_TIMES = 3


class Guard(Listener):
    """Judges the curves whenever they get a point. It reads values that are on the host already.

    Args:
        stops: the first finding ends the run.
        log_ratios, logistic: as in `Curves`.
        data: hash of the held-out data; the curves of other data do not go on.
        halt: ends the run.
        file: where findings are written.
        emit: raises an event.
    """

    name = "guard"

    def __init__(
        self,
        *,
        stops: bool,
        log_ratios: bool,
        logistic: bool,
        data: str,
        halt: Halt,
        console: Console,
        world: World,
        file: FindingsFile,
        emit: Callable[[Event], None],
    ) -> None:
        self._file, self._emit = file, emit
        self._stops, self._log_ratios, self._logistic = stops, log_ratios, logistic
        self._halt, self._console, self._world = halt, console, world
        self._data, self._total_steps = data, 0
        self._logs: list[Point] = []
        self._saves: list[Point] = []
        # By the name of the held-out set: its evaluations, and the pairs that get more wrong.
        self._evaluations: dict[str, list[Point]] = {}
        self._wrong: dict[str, dict[int, tuple[int, float]]] = {}
        self._said: set[str] = set()

    def on_start(self, event: Start) -> None:
        self._total_steps = event.total_steps
        if event.step:
            # Findings after the checkpoint are cut off here, and found anew by the same steps.
            self._say(self._file.keep(event.step))
            # A save is judged after its checkpoint is written, which does not know of that finding.
            self._said |= from_main(self._world, self._file.keys)

    def on_log(self, event: Log) -> None:
        _append(self._logs, _point(event.step, event.metrics, LOGGED))
        self._judge("", event.step)

    def on_evaluated(self, event: Evaluated) -> None:
        metrics = {name.removeprefix(event.prefix): value for name, value in event.metrics.items()}
        point = _point(event.step, metrics, EVALUATED)
        if event.pairs is not None:
            point = Point(step=event.step, metrics={**point.metrics, **self._of_pairs(event.name, event.pairs)})
        _append(self._evaluations.setdefault(event.name, []), point)
        self._judge(event.name, event.step)

    def on_saved(self, event: Saved) -> None:
        if event.metrics:
            _append(self._saves, Point(step=event.step, metrics=event.metrics))
            self._judge("", event.step)

    def _of_pairs(self, name: str, pairs: HeldOut) -> dict[str, float]:
        number, found = len(pairs.chosen), signals(pairs)
        if number <= _FOLLOWED:
            wrong = still_wrong(pairs.margins, self._wrong.get(name, {}))
            self._wrong[name] = wrong
            found[STILL_WRONG] = sum(times >= _TIMES for times, _ in wrong.values()) / number
        return {**found, PAIRS: float(number)}

    def _judge(self, name: str, step: int) -> None:
        curves = Curves(
            logs=self._logs,
            evaluations=self._evaluations.get(name, ()),
            saves=self._saves,
            total_steps=self._total_steps,
            log_ratios=self._log_ratios,
            logistic=self._logistic,
        )
        # Without a name all rules judge: the only set of a run has none, and some of these rules read logged steps
        # where nothing is held out.
        rules = OF_SETS if name else RULES
        findings = [finding for rule in rules if (finding := rule(curves)) is not None]
        if self._stops:
            # Ranks must end at the same step, so rank 0 judges for all.
            findings = from_main(self._world, lambda: findings)
        for finding in findings:
            key = f"{name}/{finding.rule}"
            # A rule goes on being true at every later point; a user reads it once.
            if key in self._said:
                continue
            self._said.add(key)
            # A finding of a logged step may be about an earlier evaluation.
            found = Found(step=step, finding=finding, name=name)
            self._console.say(f"GUARD: {found.line}")
            self._say(self._file.add(key, found))
            self._emit(found)
            if self._stops:
                self._halt.ask(step, f"--guard stop: {found.line}")

    def _say(self, news: Sequence[str]) -> None:
        for message in news:
            self._console.say(message)

    def state(self) -> dict[str, Any]:
        return {
            "data": self._data,
            "logs": _rows(self._logs),
            "saves": _rows(self._saves),
            "evaluations": {name: _rows(points) for name, points in self._evaluations.items()},
            "wrong": {name: [[at, *seen] for at, seen in wrong.items()] for name, wrong in self._wrong.items()},
            "said": sorted(self._said),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        self._logs, self._said = _points(state["logs"]), set(state["said"])
        self._saves = _points(state.get("saves", ()))  # manifests of earlier versions have none
        # Curves of other held-out pairs would show a jump that nobody trained; logged steps and what was said stay.
        if state["data"] != self._data:
            return
        self._evaluations = {name: _points(rows) for name, rows in state["evaluations"].items()}
        self._wrong = {
            name: {at: (times, margin) for at, times, margin in rows} for name, rows in state["wrong"].items()
        }


def _point(step: int, metrics: Mapping[str, float], names: Sequence[str]) -> Point:
    """The metrics among these names that are numbers."""
    return Point(
        step=step, metrics={name: metrics[name] for name in names if math.isfinite(metrics.get(name, math.nan))}
    )


def _append(points: list[Point], point: Point) -> None:
    points.append(point)
    if len(points) > _POINTS:
        # The first point stays: rules compare with the start of the run.
        del points[1]


def _rows(points: Sequence[Point]) -> list[list[Any]]:
    return [[point.step, dict(point.metrics)] for point in points]


def _points(rows: Sequence[Sequence[Any]]) -> list[Point]:
    return [Point(step=step, metrics=metrics) for step, metrics in rows]
