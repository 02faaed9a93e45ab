"""The table on the console, sweep.json and sweep.csv."""

from __future__ import annotations

import csv
import io
import json
import math

import pytest

from minimind.sweep.plan import FAILED, FINISHED
from minimind.sweep.plot import sweep_svg
from minimind.sweep.results import read_result
from minimind.sweep.table import best_first, console_table, to_csv, to_json
from tests.unit.sweep.made import evaluated, plans, write_run


@pytest.fixture
def results(tmp_path):
    """Of four runs one has failed, which had the highest accuracy, and one has not begun."""
    found = plans(tmp_path, "--beta", "0.05,0.1", "--loss", "sigmoid;sigmoid:1,sft:0.5")
    write_run(found[0], FINISHED, evaluated(8, 0.7, 0.2), exit_status=0)
    write_run(found[1], FAILED, evaluated(4, 0.9, 0.2), exit_status=70)
    write_run(found[2], FINISHED, evaluated(8, 0.7, 0.3, loss=0.55), exit_status=0)
    return [read_result(plan) for plan in found]


def test_the_best_finished_run_is_first(results):
    """Equal accuracies: the margin decides. A failed run's accuracy counts for nothing."""
    assert [results.index(result) for result in best_first(results)] == [2, 0, 1, 3]


def test_the_table_has_a_line_for_each_run(results):
    assert console_table(results).splitlines() == [
        "beta  loss               steps  accuracy   margin  last loss  status",
        "0.1   sigmoid                8     0.700  +0.3000     0.5500  finished",
        "0.05  sigmoid                8     0.700  +0.2000     0.6000  finished",
        "0.05  sigmoid:1,sft:0.5      4     0.900  +0.2000     0.6000  failed (exit status 70)",
        "0.1   sigmoid:1,sft:0.5      0         -        -          -  not started",
        "",
        "(held-out pairs, last evaluation; losses of different kinds and betas are not comparable)",
    ]


@pytest.mark.parametrize(
    ("job", "metric", "values", "order"),
    [
        ("pretrain", "perplexity", (9.0, None, math.nan, 2.0, 3.0), [3, 4, 0, 1, 2]),
        ("dpo", "rewards/accuracies", (0.5, None, math.nan, 0.0, 0.9), [4, 0, 3, 1, 2]),
    ],
)
def test_a_run_without_a_number_is_not_the_best(tmp_path, job, metric, values, order):
    found = plans(tmp_path, "--job", job, "--learning_rate", "1e-4,2e-4,3e-4,4e-4,5e-4")
    for plan, value in zip(found, values, strict=True):
        metrics = {} if value is None else {f"eval/{metric}": value}
        write_run(plan, FINISHED, {"step": 4, "eval/loss": 1.0, **metrics})
    results = [read_result(plan) for plan in found]
    assert [results.index(result) for result in best_first(results)] == order
    assert sweep_svg(results).count("nan</text>") == 1
    assert '"nan"' not in sweep_svg(results)


def test_json_and_csv_have_all_runs_in_their_order(results):
    runs = json.loads(to_json(results))["runs"]
    assert [run["values"] for run in runs] == [dict(result.plan.differing) for result in results]
    assert (runs[1]["status"], runs[1]["exit_status"]) == ("failed", 70)
    assert runs[0]["metrics"] == {"rewards/accuracies": 0.7, "rewards/margins": 0.2, "loss": 0.6}
    assert runs[0]["arguments"]["loss"] == ["sigmoid"]
    rows = list(csv.DictReader(io.StringIO(to_csv(results))))
    assert [row["loss"] for row in rows] == ["sigmoid", "sigmoid:1,sft:0.5"] * 2
    assert [row["status"] for row in rows] == ["finished", "failed", "finished", "not started"]
    assert (rows[3]["margin"], float(rows[2]["margin"]), float(rows[2]["last_loss"])) == ("", 0.3, 0.55)


def test_runs_over_tokens_are_compared_by_their_perplexity(tmp_path):
    found = plans(tmp_path, "--job", "pretrain", "--learning_rate", "1e-4,1e-3")
    for plan, perplexity in zip(found, (9.5, 8.25), strict=True):
        metrics = {"loss": 2.2, "perplexity": perplexity, "token_accuracy": 0.5}
        write_run(plan, FINISHED, {"step": 4, **{f"eval/{name}": value for name, value in metrics.items()}})
    results = [read_result(plan) for plan in found]
    lines = console_table(results).splitlines()
    assert lines[0].split() == ["learning_rate", "steps", "accuracy", "perplexity", "last", "loss", "status"]
    assert lines[1].split() == ["1e-3", "4", "0.5000", "8.250", "2.2000", "finished"]
    assert lines[-1].startswith("(held-out texts, last evaluation")
    assert to_csv(results).splitlines()[0].endswith("held_out,accuracy,perplexity,last_loss")
    assert results[0].logged == ["eval/token_accuracy", "eval/perplexity", "eval/loss"]
    assert "perplexity, held-out" in sweep_svg(results)
