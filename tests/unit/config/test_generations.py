"""Defaults that follow the model, and those of a run that resumes."""

from __future__ import annotations

import pytest

from minimind.config import CHECKPOINT, model_defaults, parse_settings
from minimind.config.generations import defaults_of_run, with_model_defaults


@pytest.mark.parametrize(
    ("generation", "origin", "average", "beta", "ratio"),
    [
        (2, "generation 2", True, 0.1, 1.0),
        (3, "generation 3", False, 0.15, 0.2),
        (None, "Hugging Face model", False, 0.1, 1.0),
    ],
)
def test_each_kind_of_model_has_its_defaults(generation, origin, average, beta, ratio):
    defaults = model_defaults(generation)
    assert defaults.objective == {"average_log_prob": average, "beta": beta}
    settings = with_model_defaults(parse_settings([]), defaults)
    assert (settings.config.data.empty_think_ratio, settings.origins["empty_think_ratio"]) == (ratio, origin)


def test_a_flag_wins():
    settings = with_model_defaults(parse_settings(["--empty_think_ratio", "0.7"]), model_defaults(3))
    assert (settings.config.data.empty_think_ratio, settings.origins["empty_think_ratio"]) == (0.7, "flag")


@pytest.mark.parametrize(
    ("flags", "hidden_size", "origin"),
    [
        ("", 512, "default"),
        ("--generation 0", 512, "default"),
        ("--generation 2", 512, "generation 2"),
        ("--generation 3", 768, "generation 3"),
        ("--generation 3 --hidden_size 64", 64, "flag"),
    ],
)
def test_the_generation_alone_sets_the_size_of_fresh_weights(flags, hidden_size, origin):
    settings = parse_settings(flags.split())
    assert (settings.config.model.hidden_size, settings.origins["hidden_size"]) == (hidden_size, origin)


def test_a_resumed_run_keeps_what_it_had():
    defaults = defaults_of_run({"beta": 0.3, "average_log_prob": False, "seed": 1, "empty_think_ratio": 0.2})
    assert defaults.origin == CHECKPOINT
    assert defaults.objective == {"beta": 0.3, "average_log_prob": False}
    assert defaults.data == {"empty_think_ratio": 0.2}
    mix = defaults_of_run({"sigmoid.beta": 0.3, "bco_pair.beta": 0.2, "bco_pair.reward_shift": True})
    assert mix.objective == {"sigmoid.beta": 0.3, "bco_pair.beta": 0.2}


def test_a_run_of_an_earlier_version_kept_all_empty_blocks():
    assert defaults_of_run({"beta": 0.1}).data == {"empty_think_ratio": 1.0}
