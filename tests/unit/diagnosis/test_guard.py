"""The guard's rules together: silent on a healthy run and where metrics are missing, each with its source."""

from __future__ import annotations

import pytest

from minimind.diagnosis.guard import BY_NAME, EVALUATED, LOGGED, OF_RUN, OF_SETS, RULES
from minimind.diagnosis.rules.progress import memorised
from tests.unit.diagnosis.made import STEPS, curves, found, healthy, made, points


def test_a_healthy_run_has_no_findings_at_any_step():
    whole = made()
    for at in range(len(STEPS) + 1):
        saves = [save for save in whole.saves if save.step < at * 100]
        assert found(curves(whole.logs[:at], whole.evaluations[:at], saves, total_steps=1000)) == []


def test_no_rule_needs_a_metric():
    """Other jobs have other metrics, and the first points of a run are none."""
    assert found(curves()) == []
    assert found(curves(points(loss=[3, 2.5, 2.2, 2, 1.9, 1.8], learning_rate=1e-4))) == []
    assert found(curves(points(), points(loss=[3, 2.5, 2.2, 2, 1.9, 1.8], perplexity=2))) == []


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_every_rule_names_its_source(rule):
    assert "arXiv" in rule.judge.__doc__


def test_findings_on_disk_name_one_rule():
    assert list(BY_NAME.values()) == list(RULES)


def test_rules_of_the_run_read_no_evaluation():
    """So they say nothing again for each set of held-out data."""
    whole = made(logged={"rewards/accuracies": 1.0, "loss": 1e-3})
    assert [rule(whole) for rule in OF_RUN] == [rule(curves(whole.logs, (), whole.saves)) for rule in OF_RUN]
    assert memorised(whole) is not None
    assert [*OF_SETS, *OF_RUN] == list(RULES)


def test_the_metrics_of_the_rules_are_kept():
    evaluated, logged = healthy()
    assert set(logged) == set(LOGGED)
    assert set(EVALUATED) - {"rewards/chosen"} <= set(evaluated)
