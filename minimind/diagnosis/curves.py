"""What the guard reads and what it says: curves of a run, and findings.

logged steps, evaluations of one held-out set, saves -> Point -> Curves -> a rule -> Finding
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence


@dataclasses.dataclass(frozen=True, kw_only=True)
class Point:
    """Metrics at a global step."""

    step: int
    metrics: Mapping[str, float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Curves:
    """What rules read.

    Attributes:
        logs: logged steps, in order.
        evaluations: of one held-out set, in order, with the signals of pair_signals.py; empty without one.
        saves: written weights, in order; metrics of `Saved`.
        total_steps: the run's last global step.
        log_ratios: rewards are log-ratios to a reference.
        logistic: the loss is -log sigmoid of the margin.
    """

    logs: Sequence[Point]
    evaluations: Sequence[Point] = ()
    saves: Sequence[Point] = ()
    total_steps: int
    log_ratios: bool = False
    logistic: bool = False

    def evaluated(self, name: str) -> list[tuple[int, float]]:
        """Step and value of a metric, at the evaluations that have it."""
        return _curve(self.evaluations, name)

    def latest(self, *names: str) -> tuple[int, list[float]] | None:
        """Step of the last evaluation, and its values of these metrics; None if it lacks one."""
        if not self.evaluations:
            return None
        last = self.evaluations[-1]
        if any(name not in last.metrics for name in names):
            return None
        return last.step, [last.metrics[name] for name in names]

    def logged(self, name: str) -> list[tuple[int, float]]:
        """Step and value of a metric, at the logged steps that have it."""
        return _curve(self.logs, name)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finding:
    """Something that goes wrong.

    Attributes:
        rule: name of the rule.
        step: global step of the numbers.
        text: what, with its numbers.
        remedy: what to try.
        form, values: from which of the rule's texts both are made, and of which numbers (rules/rule.py).
    """

    rule: str
    step: int
    text: str
    remedy: str
    form: str = ""
    values: Mapping[str, float | str] = dataclasses.field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.text} (step {self.step}): {self.remedy}"


def _curve(points: Sequence[Point], name: str) -> list[tuple[int, float]]:
    return [(point.step, point.metrics[name]) for point in points if name in point.metrics]
