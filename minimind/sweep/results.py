"""What the runs of a sweep have reached, read from their folders.

RunPlan -> sweep_run.json, metrics.jsonl -> read_result -> RunResult
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence

from minimind.config import DPOConfig
from minimind.diagnosis.run_files import METRICS_FILE, Entry, held_out_prefixes, read_entries
from minimind.errors import DataError
from minimind.sweep.plan import FINISHED, RunPlan, read_record
from minimind.training.events import prefix_of

# Metrics of the table, of pairs and of tokens.
METRICS = ("rewards/accuracies", "rewards/margins", "loss")
TOKEN_METRICS = ("token_accuracy", "perplexity", "loss")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunResult:
    """One run of a sweep.

    Attributes:
        status: finished, failed, stopped, started (by a sweep that was killed), or "not started".
        exit_status: of the launcher; None if it is not known.
        step: the last logged global step; 0 without one.
        metrics: name of a metric of the table -> last value, of several sets of held-out data their mean.
        prefixes: what the metrics begin with in the run's files: those of its sets of held-out data, from the last
            step at which all were evaluated; without any the empty one, of the last logged step of training.
        problem: why there are no metrics, if they cannot be read; else empty.
    """

    plan: RunPlan
    status: str
    exit_status: int | None
    step: int
    metrics: Mapping[str, float]
    prefixes: Sequence[str]
    problem: str = ""

    @property
    def held_out(self) -> bool:
        """The metrics are those of the last evaluation."""
        return any(self.prefixes)

    @property
    def finished(self) -> bool:
        return self.status == FINISHED

    @property
    def logged(self) -> list[str]:
        """Names under which the run has logged the metrics of the table."""
        return [f"{prefix}{name}" for name in metrics_of(self.plan) for prefix in self.prefixes]


def metrics_of(plan: RunPlan) -> tuple[str, ...]:
    """Metrics of the table."""
    return METRICS if plan.job == DPOConfig.name else TOKEN_METRICS


def read_result(plan: RunPlan) -> RunResult:
    """The result of a run, finished or not.

    Raises:
        ConfigError: the sweep's record of it cannot be read.
    """
    record = read_record(plan) or {"status": "not started", "exit": None}
    entries: list[Entry] = []
    problem = ""
    try:
        entries = read_entries(plan.folder / METRICS_FILE)
    except DataError as error:
        # One run must not cost the table of all.
        problem = str(error)
    sets, plain = held_out_prefixes(entries), prefix_of("")
    # A set without a name counts alone.
    prefixes = [plain] if plain in sets else sets or [""]
    # The last step at which all sets were evaluated: a run may have ended between two of them.
    evaluated = [{one["step"]: one for one in entries if f"{prefix}loss" in one} for prefix in prefixes]
    step = max(set.intersection(*map(set, evaluated)), default=0)
    last: list[Entry] = [of_set.get(step, {}) for of_set in evaluated]
    metrics = {}
    for name in metrics_of(plan):
        found = zip(prefixes, last, strict=True)
        values = [float(one[logged]) for prefix, one in found if (logged := f"{prefix}{name}") in one]
        if len(values) == len(prefixes):
            metrics[name] = statistics.fmean(values)
    return RunResult(
        plan=plan,
        status=record["status"],
        exit_status=record["exit"],
        step=max((int(entry["step"]) for entry in entries), default=0),
        metrics=metrics,
        prefixes=prefixes,
        problem=problem,
    )
