"""What the runs of a sweep have reached, read from their folders.

RunPlan -> sweep_run.json, metrics.jsonl -> read_result -> RunResult
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from minimind.config import DPOConfig
from minimind.diagnosis.run_files import METRICS_FILE, read_entries
from minimind.sweep.plan import FINISHED, RunPlan, read_record

# Metrics of the table, of pairs and of tokens; of held-out data they begin with eval/.
METRICS = ("rewards/accuracies", "rewards/margins", "loss")
TOKEN_METRICS = ("token_accuracy", "perplexity", "loss")
_EVAL = "eval/"


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunResult:
    """One run of a sweep.

    Attributes:
        status: finished, failed, stopped, started (by a sweep that was killed), or "not started".
        exit_status: of the launcher; None if it is not known.
        step: the last logged global step; 0 without one.
        metrics: name of a metric of the table -> last value.
        held_out: the metrics are those of the last evaluation, not those of the last logged step of training.
    """

    plan: RunPlan
    status: str
    exit_status: int | None
    step: int
    metrics: Mapping[str, float]
    held_out: bool

    @property
    def finished(self) -> bool:
        return self.status == FINISHED

    @property
    def tag(self) -> Mapping[str, str]:
        """Metric of the table -> name under which the run has logged it."""
        return {name: f"{_EVAL}{name}" if self.held_out else name for name in metrics_of(self.plan)}


def metrics_of(plan: RunPlan) -> tuple[str, ...]:
    """Metrics of the table."""
    return METRICS if plan.job == DPOConfig.name else TOKEN_METRICS


def read_result(plan: RunPlan) -> RunResult:
    """The result of a run, finished or not.

    Raises:
        ConfigError: the sweep's record of it cannot be read.
        DataError: its metrics cannot be read.
    """
    record = read_record(plan) or {"status": "not started", "exit": None}
    entries = read_entries(plan.folder / METRICS_FILE)
    evaluations = [entry for entry in entries if f"{_EVAL}loss" in entry]
    # The first evaluation is before training.
    held_out = bool(evaluations)
    last = (evaluations or [entry for entry in entries if "loss" in entry] or [{}])[-1]
    names = {name: f"{_EVAL}{name}" if held_out else name for name in metrics_of(plan)}
    return RunResult(
        plan=plan,
        status=record["status"],
        exit_status=record["exit"],
        step=max((int(entry["step"]) for entry in entries), default=0),
        metrics={name: float(last[logged]) for name, logged in names.items() if logged in last},
        held_out=held_out,
    )
