"""The results of a sweep as a table on the console, and as sweep.json and sweep.csv.

list of RunResult -> console_table, to_json, to_csv
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence

from minimind.config.jobs import JOBS
from minimind.sweep.results import RunResult, metrics_of

_HEADS = {
    "rewards/accuracies": "accuracy",
    "rewards/margins": "margin",
    "token_accuracy": "accuracy",
    "perplexity": "perplexity",
    "loss": "last loss",
}
_FORMATS = {
    "rewards/accuracies": ".3f",
    "rewards/margins": "+.4f",
    "token_accuracy": ".4f",
    "perplexity": ".3f",
    "loss": ".4f",
}


def best_first(results: Sequence[RunResult]) -> list[RunResult]:
    """Finished runs by accuracy and then margin, the highest first, or by perplexity, the lowest first; those without
    such a number after them. The runs that are not finished follow, in the same order."""

    def rank(result: RunResult) -> tuple[bool, float, float]:
        def known(name: str, sign: int) -> float:
            value = sign * result.metrics.get(name, math.nan)
            # A NaN, which is neither less nor more, would leave the others without an order.
            return math.inf if math.isnan(value) else value

        if "perplexity" in metrics_of(result.plan):
            return (not result.finished, known("perplexity", 1), 0.0)
        return (not result.finished, known("rewards/accuracies", -1), known("rewards/margins", -1))

    return sorted(results, key=rank)


def console_table(results: Sequence[RunResult]) -> str:
    """The table, the best run first, and what its numbers are."""
    flags, metrics = list(results[0].plan.differing), metrics_of(results[0].plan)
    rows = [[*flags, "steps", *(_HEADS[name] for name in metrics), "status"]]
    for result in best_first(results):
        cells = [format(result.metrics[name], _FORMATS[name]) if name in result.metrics else "-" for name in metrics]
        status = result.status if result.status != "failed" else f"failed (exit status {result.exit_status})"
        rows.append([*result.plan.differing.values(), str(result.step), *cells, status])
    widths = [max(len(row[index]) for row in rows) for index in range(len(rows[0]))]
    last = len(widths) - 1
    lines = [
        "  ".join(
            cell.ljust(width) if index < len(flags) or index == last else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    items = JOBS[results[0].plan.job].items
    held_out = {result.held_out for result in results if result.metrics}
    kind = {True: f"held-out {items}, last evaluation", False: f"training {items}, last logged step"}
    notes = " or ".join(kind[one] for one in sorted(held_out, reverse=True)) or "no run has logged anything yet"
    return "\n".join([*lines, "", f"({notes}; losses of different kinds and betas are not comparable)"])


def to_json(results: Sequence[RunResult]) -> str:
    """All runs in the order of the combinations."""
    runs = [
        {
            "name": result.plan.name,
            "folder": str(result.plan.folder),
            "values": dict(result.plan.differing),
            "arguments": {name: list(value) for name, value in result.plan.arguments.items()},
            "status": result.status,
            "exit_status": result.exit_status,
            "step": result.step,
            "held_out": result.held_out,
            "metrics": dict(result.metrics),
        }
        for result in results
    ]
    return json.dumps({"runs": runs}, indent=1, ensure_ascii=False) + "\n"


def to_csv(results: Sequence[RunResult]) -> str:
    """One line for each run, in the order of the combinations; empty cells for what is not known."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    flags = list(results[0].plan.differing)
    # --loss may be one of the flags.
    heads = [_HEADS[name].replace(" ", "_") for name in metrics_of(results[0].plan)]
    writer.writerow(["run", *flags, "status", "exit_status", "step", "held_out", *heads])
    for result in results:
        exit_status = "" if result.exit_status is None else result.exit_status
        values = [result.metrics.get(name, "") for name in metrics_of(result.plan)]
        writer.writerow(
            [
                result.plan.name,
                *result.plan.differing.values(),
                result.status,
                exit_status,
                result.step,
                int(result.held_out),
                *values,
            ]
        )
    return text.getvalue()
