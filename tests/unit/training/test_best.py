"""The best evaluation: what a metric's name says, which one is the best, and when there was no progress."""

from __future__ import annotations

import json
import math

import pytest

from minimind.errors import ConfigError
from minimind.training.best import Best, Criterion, parse_early_stop, parse_save_best

KNOWN = {f"eval/{name}": name for name in ("loss", "dpo_loss", "loss/sft", "kl", "rewards/accuracies", "perplexity")}


@pytest.mark.parametrize(
    ("text", "metric", "larger"),
    [
        ("eval/loss", "eval/loss", False),
        ("eval/dpo_loss", "eval/dpo_loss", False),
        ("eval/loss/sft", "eval/loss/sft", False),
        ("eval/perplexity", "eval/perplexity", False),
        ("eval/rewards/accuracies", "eval/rewards/accuracies", True),
        ("min:eval/kl", "eval/kl", False),
        ("max:eval/kl", "eval/kl", True),
        ("max:eval/loss", "eval/loss", True),
    ],
)
def test_the_direction_of_a_metric(text, metric, larger):
    assert parse_save_best(text, KNOWN) == Criterion(metric=metric, larger=larger)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("eval/kl", "is not known by its name; give max:eval/kl or min:eval/kl"),
        ("loss", "evaluations have no metric 'loss'; they have: eval/loss, eval/dpo_loss"),
        ("max:", "evaluations have no metric ''"),
        ("best:eval/loss", "evaluations have no metric 'best:eval/loss'"),
    ],
)
def test_a_metric_that_cannot_decide_is_refused(text, message):
    with pytest.raises(ConfigError) as caught:
        parse_save_best(text, KNOWN)
    assert message in str(caught.value)


def test_the_patience():
    assert parse_early_stop("patience:5") == 5
    for wrong in ("5", "patience", "patience:0", "patience:-1", "patience:1.5", "patience:5 ", "delta:1"):
        with pytest.raises(ConfigError, match="not of the form patience:N"):
            parse_early_stop(wrong)


def test_the_best_is_the_first_of_equal_ones_and_never_nan():
    best = Best(Criterion(metric="eval/loss", larger=False))
    offers = [best.offer(step, value) for step, value in enumerate((math.nan, 0.7, 0.5, 0.5, math.nan, 0.6, 0.4))]
    assert offers == [False, True, True, False, False, False, True]
    assert (best.step, best.value, best.since) == (6, 0.4, 0)
    assert not best.offer(7, math.inf)
    assert best.since == 1


def test_a_state_goes_through_json_and_belongs_to_its_criterion():
    smaller, larger = (Criterion(metric="eval/loss", larger=larger) for larger in (False, True))
    best = Best(smaller)
    best.offer(0, math.nan)
    again = Best(smaller)
    assert again.restore(json.loads(json.dumps(best.state())))
    assert (again.step, again.since) == (None, 1)
    best.offer(2, 0.5)
    best.offer(4, 0.6)
    assert again.restore(json.loads(json.dumps(best.state())))
    assert (again.step, again.value, again.since) == (2, 0.5, 1)
    other = Best(larger)
    assert not other.restore(best.state())
    assert other.step is None
