"""Flags for the loss. Options that were not given are those of the loss (`objective/choice.py`)."""

from __future__ import annotations

import dataclasses

import pytest

from minimind.config import ObjectiveConfig, parse_settings
from minimind.errors import ConfigError


def test_the_loss_alone_has_a_default():
    assert dataclasses.asdict(ObjectiveConfig()) == {
        "loss": "sigmoid",
        "beta": None,
        "average_log_prob": None,
        "label_smoothing": None,
        "loss_options": None,
    }


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("beta", "0", "is not above 0"),
        ("beta", "-1", "is not above 0"),
        ("beta", "inf", "is not a finite number"),
        ("average_log_prob", "2", "is neither 0 nor 1"),
        ("label_smoothing", "-0.1", "is below 0"),
    ],
)
def test_a_value_that_is_not_allowed_is_refused(flag, value, message):
    with pytest.raises(ConfigError, match=rf"--{flag}:? .*{message}"):
        parse_settings([f"--{flag}", value])
