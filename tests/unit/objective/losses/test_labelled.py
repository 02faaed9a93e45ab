"""Losses of single answers with labels, against values by hand and formulas in float64."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from minimind.objective.losses import Need, loss_class
from tests.unit.objective.losses.pairs import inputs, log_sigmoid, sigmoid, slopes, values

LABELS = torch.tensor([True, False, False])


def given(answers, mismatched, labels=LABELS, **more):
    """Log-ratios of answers; the reference gives 0. Of mismatched rows the mean counts."""
    rows = inputs([(answer, 0.0) for answer in answers], **more)
    mean = torch.tensor(mismatched, dtype=torch.float64).mean()
    return dataclasses.replace(rows, labels=labels, mismatched=mean)


def test_kto_by_hand():
    """Log-ratios 2, 1, -3; mismatched 3, -1, 4, whose mean is 2. Rewards minus the KL term: 0, -0.5, -2.5."""
    loss = loss_class("kto")(beta=0.5, desirable_weight=3.0, undesirable_weight=0.5)
    rows = given([2.0, 1.0, -3.0], [3.0, -1.0, 4.0])
    expected = [3 * (1 - sigmoid(0.0)), 0.5 * (1 - sigmoid(0.5)), 0.5 * (1 - sigmoid(2.5))]
    assert values(loss, rows) == pytest.approx(expected, rel=1e-9)
    metrics = loss(rows).metrics
    assert metrics["kl"].tolist() == [2.0] * 3
    # Metrics of a part are summed over it; its share divides them later.
    assert metrics["rewards/chosen"].tolist() == [1.0, 0.0, 0.0]
    assert metrics["rewards/rejected"].tolist() == [0.0, 0.5, -1.5]
    assert metrics["logps/rejected"].tolist() == [0.0, 1.0, -3.0]
    assert metrics["desirable"].tolist() == [1.0, 0.0, 0.0]
    assert metrics["undesirable"].tolist() == [0.0, 1.0, 1.0]
    assert set(loss.parts.values()) == {"desirable", "undesirable"}


def test_the_kl_term_of_kto_is_not_negative():
    loss = loss_class("kto")(beta=0.5)
    rows = given([2.0, 1.0, -3.0], [-3.0, 1.0, -4.0])
    assert loss(rows).metrics["kl"].tolist() == [0.0] * 3
    assert values(loss, rows) == pytest.approx([1 - sigmoid(1.0), 1 - sigmoid(-0.5), 1 - sigmoid(1.5)], rel=1e-9)


def test_bco_by_hand():
    """Rewards 1, 0.5, -1.5; from the second step on minus the mean of earlier ones."""
    loss, rows = loss_class("bco")(beta=0.5, average_log_prob=False), ([2.0, 1.0, -3.0], [0.0, 0.0, 0.0])
    assert values(loss, given(*rows)) == pytest.approx([-log_sigmoid(x) for x in (1, -0.5, 1.5)], rel=1e-9)
    shifted = given(*rows, statistics={"reward": 0.25})
    assert values(loss, shifted) == pytest.approx([-log_sigmoid(x) for x in (0.75, -0.25, 1.75)], rel=1e-9)
    assert loss(shifted).statistics["reward"].tolist() == [1.0, 0.5, -1.5]
    plain = dataclasses.replace(loss, reward_shift=False)
    assert values(plain, shifted) == pytest.approx([-log_sigmoid(x) for x in (1, -0.5, 1.5)], rel=1e-9)
    assert (plain.statistics, plain(shifted).statistics) == ({}, {})


def test_bco_of_both_answers_of_a_pair_is_that_of_pairs():
    """The sum of the losses of both answers, with the same shift."""
    pair = inputs([[2.0, -1.0]], statistics={"reward": 0.25})
    single = given([2.0, -1.0], [0.0, 0.0], LABELS[:2], statistics={"reward": 0.25})
    assert sum(values(loss_class("bco")(), single)) == pytest.approx(values(loss_class("bco_pair")(), pair)[0])


def test_apo_zero_of_both_answers_of_a_pair_is_that_of_pairs():
    single = given([2.0, -1.0], [5.0, 5.0], LABELS[:2])
    both = values(loss_class("apo_zero_unpaired")(), single)
    assert both == pytest.approx([1 - sigmoid(0.2), sigmoid(-0.1)])
    assert sum(both) == pytest.approx(values(loss_class("apo_zero")(), inputs([[2.0, -1.0]]))[0])


def by_hand(name, ratio, label, divergence):
    """Loss and its derivative in the log-prob of the answer, with beta 0.1."""
    sign = 1 if label else -1
    logit = sign * 0.1 * (ratio - (divergence if name == "kto" else 0))
    if name == "bco":
        loss = math.log1p(math.exp(-logit)) if logit > -500 else -logit
        return loss, -sign * 0.1 * sigmoid(-logit)
    return sigmoid(-logit), -sign * 0.1 * sigmoid(logit) * sigmoid(-logit)


@pytest.mark.parametrize("name", ["kto", "bco", "apo_zero_unpaired"])
@pytest.mark.parametrize("scale", [0.0, 1.0, 1e4])
def test_values_and_gradients_at_any_size(name, scale):
    """Random log-ratios, equal ones (scale 0) and ones of 1e4, which overflow an exponential."""
    generator = torch.Generator().manual_seed(3)
    ratios = torch.randn(20, 2, generator=generator, dtype=torch.float64) * scale
    labels = torch.rand(20, generator=generator) < 0.4
    rows = dataclasses.replace(inputs(ratios), labels=labels, mismatched=ratios[:, 1].mean())
    options = {} if name == "kto" else {"average_log_prob": False}
    loss, divergence = loss_class(name)(**options), max(0.0, ratios[:, 1].mean().item())
    rest = zip(ratios[:, 0].tolist(), labels.tolist(), strict=True)
    expected = [by_hand(name, ratio, label, divergence) for ratio, label in rest]
    assert values(loss, rows) == pytest.approx([value for value, _ in expected], rel=1e-9, abs=1e-15)
    slope = slopes(loss, rows)
    assert slope[:, 0].tolist() == pytest.approx([derivative for _, derivative in expected], rel=1e-9, abs=1e-15)
    assert not slope[:, 1].any()


@pytest.mark.parametrize("name", ["kto", "bco", "apo_zero_unpaired"])
def test_a_loss_starts_at_its_start_value_for_both_labels(name):
    loss = loss_class(name)()
    assert values(loss, given([0.0] * 3, [0.0] * 3)) == pytest.approx([loss.start_value()] * 3)


def test_with_two_weights_the_start_depends_on_the_label():
    assert loss_class("kto")(desirable_weight=2.0).start_value() is None
    assert loss_class("kto")(desirable_weight=2.0, undesirable_weight=2.0).start_value() == 1.0


def test_only_kto_needs_answers_to_other_prompts():
    needs = {name: loss_class(name).needs for name in ("kto", "bco", "apo_zero_unpaired")}
    assert [name for name, of in needs.items() if Need.MISMATCHED in of] == ["kto"]
    assert all(Need.LABELS in of for of in needs.values())
