"""The best evaluation of a run: which metric decides, in which direction, and when a run without progress ends.

--save_best -> parse_save_best -> Criterion -> Best.offer(step, value) of each evaluation -> is it the best so far
--early_stop -> parse_early_stop -> patience, compared with Best.since
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

from minimind.errors import ConfigError

# Metrics whose better direction is beyond doubt, by their names without the prefix and the name of a set.
_LARGER = ("rewards/accuracies", "rewards/margins", "rewards/chosen", "logps/chosen", "token_accuracy")
_SMALLER = re.compile(r"(?:.*_)?loss|loss/.*|nll|perplexity")
_PATIENCE = re.compile(r"patience:(\d{1,6})", re.ASCII)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Criterion:
    """What makes an evaluation better than another.

    Attributes:
        metric: as it is logged, e.g. eval/loss.
        larger: a larger value is better; else a smaller one.
    """

    metric: str
    larger: bool

    def better(self, value: float, than: float) -> bool:
        """Whether a value is better than another; equal ones and NaN are not."""
        return value > than if self.larger else value < than


def parse_save_best(text: str, known: Mapping[str, str]) -> Criterion:
    """The value of --save_best: a metric, or max: or min: and a metric.

    Args:
        known: metric that evaluations of this run log -> its name without the prefix, e.g. eval/zh/loss -> loss.

    Raises:
        ConfigError: there is no such metric, or its direction is not known by its name.
    """
    direction, colon, metric = text.partition(":")
    if not colon or direction not in ("max", "min"):
        direction, metric = "", text
    if metric not in known:
        listed = ", ".join(known)
        raise ConfigError(f"--save_best {text}: evaluations have no metric {metric!r}; they have: {listed}")
    name = known[metric]
    if not direction:
        if name not in _LARGER and not _SMALLER.fullmatch(name):
            raise ConfigError(
                f"--save_best {text}: whether a larger {metric} is better is not known by its name; give max:{metric} "
                f"or min:{metric}"
            )
        direction = "max" if name in _LARGER else "min"
    return Criterion(metric=metric, larger=direction == "max")


def parse_early_stop(text: str) -> int:
    """The patience in the value of --early_stop, patience:N with N of at least 1.

    Raises:
        ConfigError: it has another form.
    """
    match = _PATIENCE.fullmatch(text)
    if match is None or not int(match[1]):
        raise ConfigError(f"--early_stop {text}: not of the form patience:N, e.g. patience:5, with N of at least 1")
    return int(match[1])


class Best:
    """The best evaluation so far.

    Attributes:
        step: its global step; None before the first evaluation with a number.
        value: of the metric there.
        since: evaluations after it.
    """

    def __init__(self, criterion: Criterion) -> None:
        self.criterion = criterion
        self.step: int | None = None
        self.value = math.nan
        self.since = 0

    def offer(self, step: int, value: float) -> bool:
        """Take an evaluation into account; whether it is the best so far. NaN never is, and counts as no progress."""
        if not math.isnan(value) and (self.step is None or self.criterion.better(value, self.value)):
            self.step, self.value, self.since = step, value, 0
            return True
        self.since += 1
        return False

    def state(self) -> dict[str, Any]:
        """JSON values from which `restore` goes on."""
        value = None if self.step is None else self.value
        return {**dataclasses.asdict(self.criterion), "step": self.step, "value": value, "since": self.since}

    def restore(self, state: Mapping[str, Any]) -> bool:
        """Go on from a state; False, and nothing is taken over, if it is of another criterion."""
        if any(state.get(name) != value for name, value in dataclasses.asdict(self.criterion).items()):
            return False
        self.step, self.since = state["step"], state["since"]
        self.value = math.nan if self.step is None else state["value"]
        return True

    def __str__(self) -> str:
        return f"{self.criterion.metric} {self.value:.6g} at step {self.step}"
