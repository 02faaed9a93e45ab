"""Rules about held-out pairs, each on made curves that show the failure, and on ones that do not."""

from __future__ import annotations

from minimind.diagnosis.pair_signals import (
    CORRELATION,
    DISPLACED,
    EQUAL_LENGTH_ACCURACY,
    EQUAL_LENGTHS,
    SATURATED,
)
from minimind.diagnosis.rules import pairs as rules
from minimind.diagnosis.rules.pairs import PAIRS, STILL_WRONG
from tests.unit.diagnosis.made import curves, made, points


def test_chosen_answers_that_lose_likelihood():
    share = [0, 0.5, 0.7, 0.8, 0.9, 0.95]
    finding = rules.displacement(made({DISPLACED: share}))
    assert str(finding) == (
        "95% of chosen answers have become less likely than under the reference, 90% at step 400 (step 500): try "
        "--loss sigmoid:1,sft:0.2 or dpop"
    )
    # A share that falls, and one that is high once. Rewards without a reference are no log-ratios, and nothing has been
    # learnt at 0.
    assert rules.displacement(made({DISPLACED: [0, 0.5, 0.7, 0.8, 0.9, 0.75]})) is None
    assert rules.displacement(made({DISPLACED: [0, 0.5, 0.5, 0.5, 0.5, 0.9]})) is None
    assert rules.displacement(made({DISPLACED: share}, log_ratios=False)) is None
    assert rules.displacement(made({DISPLACED: share, "rewards/margins": 1e-4})) is None
    assert rules.displacement(curves((), points((0, 100), **{DISPLACED: [0.9, 0.9], "rewards/margins": 0.1}))) is None


def test_margins_that_follow_length():
    follows = {CORRELATION: [0, 0.4, 0.6, 0.7, 0.7, 0.75], EQUAL_LENGTH_ACCURACY: 0.52}
    finding = rules.length(made(follows))
    assert finding is not None
    assert finding.text == (
        "longer answers win: margins correlate by +0.75 with the difference of lengths, and accuracy is 0.52 where "
        "both answers are about equally long, 0.72 over all"
    )
    shorter = rules.length(made({CORRELATION: -0.8, EQUAL_LENGTH_ACCURACY: 0.5}))
    assert shorter is not None
    assert shorter.text.startswith("shorter answers win")
    # Pairs of equal lengths are learnt as well, or there are too few of them.
    assert rules.length(made({**follows, EQUAL_LENGTH_ACCURACY: 0.7})) is None
    assert rules.length(made({**follows, EQUAL_LENGTHS: 5})) is None
    assert rules.length(made({**follows, CORRELATION: 0.3})) is None


def test_gradients_that_have_vanished():
    finding = rules.saturation(made({SATURATED: [0, 0.2, 0.5, 0.7, 0.8, 0.9]}))
    assert finding is not None
    assert finding.text.startswith("90% of held-out pairs")
    assert rules.saturation(made({SATURATED: 0.7})) is None
    # The gradient of another loss does not vanish at large margins.
    assert rules.saturation(made({SATURATED: 0.9}, logistic=False)) is None


def test_pairs_that_get_more_wrong():
    finding = rules.mislabelled(made({STILL_WRONG: [0, 0, 0, 0.06, 0.08, 0.1]}))
    assert finding is not None
    assert finding.text.startswith("10% of held-out pairs are ranked wrongly")
    assert rules.mislabelled(made({STILL_WRONG: 0.04})) is None
    # A model that has learnt nothing says nothing about labels; nor do few pairs.
    assert rules.mislabelled(made({STILL_WRONG: 0.3, "rewards/accuracies": 0.55})) is None
    assert rules.mislabelled(made({STILL_WRONG: 0.1, PAIRS: 30})) is None
