"""Results of runs: the last evaluation, else the last logged step; files that a kill has cut off."""

from __future__ import annotations

import pytest

from minimind.sweep.plan import FAILED, FINISHED, STOPPED
from minimind.sweep.results import read_result
from tests.unit.sweep.made import evaluated, plans, trained, write_run


@pytest.fixture
def plan(tmp_path):
    (found,) = plans(tmp_path)
    return found


def test_a_run_that_has_not_begun(plan):
    result = read_result(plan)
    assert (result.status, result.step, result.metrics, result.finished) == ("not started", 0, {}, False)


def test_the_last_evaluation_counts(plan):
    write_run(plan, FINISHED, evaluated(0, 0.5), trained(2, 0.6), evaluated(4, 0.75, 0.3, 0.5), trained(4, 0.4))
    result = read_result(plan)
    assert result.metrics == {"rewards/accuracies": 0.75, "rewards/margins": 0.3, "loss": 0.5}
    assert (result.finished, result.held_out, result.step) == (True, True, 4)
    assert result.logged == ["eval/rewards/accuracies", "eval/rewards/margins", "eval/loss"]


def test_of_sets_with_names_the_mean_counts(plan):
    """Each set has its lines; one without a name counts alone."""
    sets = [
        {"step": step, f"eval/{name}/loss": loss, f"eval/{name}/rewards/accuracies": accuracy}
        for step, name, loss, accuracy in (
            (0, "zh", 0.7, 0.5), (0, "en", 0.7, 0.5), (4, "zh", 0.25, 0.75), (4, "en", 0.75, 1.0),
        )
    ]  # fmt: skip
    write_run(plan, FINISHED, *sets, trained(4, 0.125))
    result = read_result(plan)
    assert (result.metrics, result.held_out) == ({"rewards/accuracies": 0.875, "loss": 0.5}, True)
    assert result.logged[-2:] == ["eval/zh/loss", "eval/en/loss"]
    # A run that ended between two sets: numbers of different steps have no mean.
    write_run(plan, FAILED, *sets, {"step": 8, "eval/zh/loss": 0.1, "eval/zh/rewards/accuracies": 1.0})
    assert read_result(plan).metrics == result.metrics
    write_run(plan, FINISHED, *sets, evaluated(4, 0.5))
    assert read_result(plan).metrics["rewards/accuracies"] == 0.5


def test_without_held_out_pairs_the_last_logged_step_counts(plan):
    write_run(plan, STOPPED, trained(2, 0.6), trained(4, 0.4), exit_status=75)
    with (plan.folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "loss": 0.')
    result = read_result(plan)
    assert (result.status, result.exit_status, result.step) == ("stopped", 75, 4)
    assert (result.metrics["loss"], result.held_out, result.logged[-1]) == (0.4, False, "loss")
