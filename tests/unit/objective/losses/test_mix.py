"""Objectives: a weighted sum of losses with the metrics, running means and identity of all."""

from __future__ import annotations

import pytest
import torch

from minimind.objective.losses import REWARD_METRICS, Need, build_objective, loss_class
from tests.unit.objective.losses.pairs import LN2, differences, inputs, log_sigmoid, slopes

MPO = build_objective("sigmoid:0.8,bco_pair:0.2,sft:1", {"beta": 0.5, "average_log_prob": False})
# Sums and their means over 2 and 1 targets; rewards 1 and -0.5 with a reference of -4 and -3.
GIVEN = {"policy": [[-2.0, -4.0]], "reference": [[-4.0, -3.0]], "counts": [[0, 2, 1]]}


def test_a_mix_is_the_weighted_sum_by_hand():
    result = MPO(inputs(**GIVEN))
    dpo, bco, nll = -log_sigmoid(1.5), -log_sigmoid(1) - log_sigmoid(0.5), 1.0
    assert result.losses.item() == pytest.approx(0.8 * dpo + 0.2 * bco + nll)
    metrics = {name: value.item() for name, value in result.metrics.items()}
    assert metrics == pytest.approx(
        {
            "rewards/chosen": 1.0,
            "rewards/rejected": -0.5,
            "rewards/accuracies": 1.0,
            "rewards/margins": 1.5,
            "logps/chosen": -2.0,
            "logps/rejected": -4.0,
            "loss/sigmoid": dpo,
            "loss/bco_pair": bco,
            "loss/sft": nll,
        }
    )
    assert tuple(metrics) == MPO.metrics
    torch.testing.assert_close(slopes(MPO, inputs(**GIVEN)), differences(MPO, inputs(**GIVEN)), rtol=1e-6, atol=1e-8)


def test_one_loss_of_weight_1_is_the_loss_alone():
    objective, loss = build_objective("sigmoid"), loss_class("sigmoid")()
    given = inputs(**GIVEN)
    assert objective(given).losses.item() == loss(given).losses.item()
    assert (objective.is_mix, objective.metrics, objective.name) == (False, REWARD_METRICS, "sigmoid")
    assert objective.start_value() == pytest.approx(LN2)
    half = build_objective("sigmoid:0.5")
    assert half(given).losses.item() == pytest.approx(loss(given).losses.item() / 2)
    assert half.metrics == (*REWARD_METRICS, "loss/sigmoid")


def test_the_first_loss_that_has_a_metric_gives_it():
    """beta 1 and 0.5: the rewards of a ratio of 2 are 2 and 1."""
    betas = '{"sigmoid": {"beta": 1}, "hinge": {"beta": 0.5}}'
    for spec, reward in (("sigmoid,hinge", 2.0), ("hinge,sigmoid", 1.0), ("sft,hinge,sigmoid", 1.0)):
        objective = build_objective(spec, {"average_log_prob": False}, betas)
        assert objective(inputs(**GIVEN)).metrics["rewards/chosen"].item() == reward


def test_each_loss_gets_its_own_running_means():
    assert MPO.statistics == {"bco_pair.reward": 1.0}
    shifted = MPO(inputs(**GIVEN, statistics={"bco_pair.reward": 0.25, "sigmoid.reward": 9.0}))
    assert shifted.metrics["loss/bco_pair"].item() == pytest.approx(-log_sigmoid(0.75) - log_sigmoid(0.75))
    assert {name: value.tolist() for name, value in shifted.statistics.items()} == {"bco_pair.reward": [0.25]}


def test_needs_are_those_of_all_parts():
    assert MPO.needs == {Need.REFERENCE}
    assert build_objective("simpo,sft").needs == frozenset()


def test_a_mix_starts_at_the_weighted_sum_of_starts():
    assert build_objective("sigmoid:0.5,hinge:2").start_value() == pytest.approx(0.5 * LN2 + 2)
    assert MPO.start_value() is None  # that of sft depends on the pair


def test_name_and_options_identify_the_objective():
    assert MPO.name == "sigmoid:0.8,bco_pair:0.2,sft:1"
    assert build_objective(MPO.name).name == MPO.name
    third = build_objective(f"hinge:{1 / 3}").name
    assert build_objective(third).parts[0].weight == 1 / 3
    assert build_objective("hinge").options() == {"average_log_prob": True, "beta": 0.1}
    assert MPO.options() == {
        "sigmoid.average_log_prob": False,
        "sigmoid.beta": 0.5,
        "sigmoid.label_smoothing": 0.0,
        "bco_pair.average_log_prob": False,
        "bco_pair.beta": 0.5,
        "bco_pair.reward_shift": True,
        "sft.average_log_prob": True,
    }


def test_a_person_reads_weights_options_and_kind_of_log_probs():
    assert MPO.describe() == (
        "0.8 sigmoid (beta 0.5, label_smoothing 0, summed log-probs) + "
        "0.2 bco_pair (beta 0.5, reward_shift 1, summed log-probs) + 1 sft (mean log-probs)"
    )
    assert build_objective("hinge").describe() == "hinge (beta 0.1, mean log-probs)"
