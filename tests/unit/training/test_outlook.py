"""The estimate of how far a margin can move, against runs; its warning and its recipes."""

from __future__ import annotations

import re
from types import SimpleNamespace

import numpy as np
import pytest

from minimind import demo
from minimind.config import parse_settings
from minimind.objective.losses import build_objective
from minimind.training.outlook import Outlook, outlook_messages, outlook_of, report_outlook

# float32 runs: rates, parameters, tokens of answers, beta, mean or sum, and the margin that the run has ended with: of
# held-out pairs, but for random weights of MiniMind-3 on Chinese pairs of the last steps' pairs, not yet trained on.
RUNS = {
    "demo, 1e-6, sums": (4.9e-5, 974_640, 18.2, 16.8, 0.15, False, 1.28e-3),
    "demo, 1e-6, means": (4.9e-5, 974_640, 18.2, 16.8, 0.1, True, 5.0e-5),
    "demo, 3e-4, sums": (1.47e-2, 974_640, 18.2, 16.8, 0.15, False, 1.59),
    "demo, 3e-4, means": (1.47e-2, 974_640, 18.2, 16.8, 0.1, True, 9.8e-2),
    "hidden 128, 1e-6": (1.275e-5, 1_262_272, 143.2, 123.1, 0.15, False, 3.7e-4),
    "hidden 256, 1e-6": (1.275e-5, 4_983_296, 143.2, 123.1, 0.15, False, 3.6e-3),
    # tests/benchmarks/recipes.py with --learning_rate and --beta
    "MiniMind2, 1e-5, means": (4.5e-4, 1_213_056, 18.2, 16.8, 0.3, True, 4.06e-2),
    "MiniMind2, 2e-4, means": (9.0e-3, 1_213_056, 18.2, 16.8, 0.1, True, 0.281),
    "MiniMind-3, hidden 64, 1e-5": (4.5e-4, 656_064, 18.2, 16.8, 0.5, False, 0.107),
    "Qwen3, 1e-6": (4.5e-5, 817_728, 18.2, 16.8, 0.05, False, 1.1e-3),
    "Qwen3, 5e-5": (2.25e-3, 817_728, 18.2, 16.8, 0.1, False, 0.142),
}


@pytest.mark.parametrize("name", RUNS)
def test_runs_are_estimated_within_an_order_of_magnitude(name):
    rates, parameters, chosen, rejected, beta, average, margin = RUNS[name]
    outlook = Outlook(rates=rates, parameters=parameters, chosen=chosen, rejected=rejected)
    assert 1 / 12 < beta * outlook.log_ratio(average) / margin < 10


def messages(rates=4.9e-6, steps=90, rate=1e-7, **given):
    outlook = Outlook(rates=rates, parameters=10**6, chosen=20.0, rejected=20.0)
    return list(outlook_messages(outlook, build_objective(given.pop("loss", "sigmoid"), given), rate, steps))


def test_a_loss_that_cannot_move_is_a_warning_with_recipes():
    (message,) = messages(beta=0.1, average_log_prob=True)
    assert message.startswith("WARNING: mean log-probs, beta 0.1, learning rate 1e-07, 90 steps: the margin can reach")
    assert "about 2e-05; the loss will read 0.6931 throughout" in message
    recipes = re.findall(r"--average_log_prob (\d) --learning_rate ([\d.e-]+)", message)
    assert [kind for kind, _ in recipes] == ["0", "1"]
    # Each recipe, taken, is no warning and aims at a margin of 0.1.
    for kind, rate in recipes:
        scale = float(rate) / 1e-7
        (line,) = messages(rates=4.9e-6 * scale, beta=0.1, average_log_prob=kind == "1")
        assert re.fullmatch(r"the margin can reach about (9e-02|1e-01) in 90 steps \(estimate\)", line)


def test_a_loss_that_hardly_moves_says_where_it_ends():
    (message,) = messages(rates=1e-5, beta=0.1, average_log_prob=False)
    assert "the loss will end at about 0.69" in message


@pytest.mark.parametrize("loss", ["simpo", "sigmoid:1,sft:1", "rdpo"])
def test_losses_without_a_common_start_are_not_estimated(loss):
    assert messages(loss=loss) == []


def test_a_loss_with_one_kind_of_log_probs_has_one_recipe():
    (message,) = messages(loss="sigmoid_norm", rates=1e-7)
    assert "mean log-probs, beta 5" in message
    assert "--average_log_prob" not in message


def pair(chosen, rejected):
    return SimpleNamespace(chosen_mask=mask(chosen), rejected_mask=mask(rejected))


def mask(targets):
    return np.array([1, *[1] * targets, 0])


def test_tokens_are_counted_and_rates_summed():
    config = parse_settings(["--learning_rate", "1e-3"]).config
    outlook = outlook_of(config, [pair(3, 5), pair(5, 9)], 10, total_steps=2)
    # Factors of the cosine: 0.55 in the middle, 0.1 at the end. The first token is predicted from nothing.
    assert outlook.rates == pytest.approx(0.65e-3)
    assert (outlook.chosen, outlook.rejected, outlook.parameters) == (4.0, 7.0, 10)


@pytest.mark.parametrize(("kind", "lines"), [("AdamW", 1), ("SGD", 0), ("Muon", 0)])
def test_other_optimizers_are_not_estimated(kind, lines):
    said = []
    prepared = SimpleNamespace(
        settings=parse_settings(["--data_path", str(demo.TRAIN_PATH)]),
        objective=build_objective("sigmoid"),
        source=SimpleNamespace(shapes=lambda: {"a": (3, 4), "b": (2,)}),
        policy_config=SimpleNamespace(values={"optimizer": {"type": kind}}),
    )
    data = SimpleNamespace(table=[pair(3, 5)], total_steps=4)
    report_outlook(prepared, data, SimpleNamespace(say=said.append))
    assert len(said) == lines
