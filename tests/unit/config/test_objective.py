"""Flags for the DPO loss. The defaults are those of MiniMind2's train_dpo.py (MiniMind-3 has a beta of 0.15)."""

from __future__ import annotations

import dataclasses

import pytest

from minimind.config import ObjectiveConfig, parse_settings
from minimind.errors import ConfigError


def test_defaults_are_minimind_s():
    assert dataclasses.asdict(ObjectiveConfig()) == {
        "loss": "sigmoid",
        "beta": 0.1,
        "average_log_prob": True,
    }


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("beta", "0", "is not above 0"),
        ("beta", "-1", "is not above 0"),
        ("beta", "inf", "is not a finite number"),
        ("average_log_prob", "2", "is neither 0 nor 1"),
    ],
)
def test_a_value_that_is_not_allowed_is_refused(flag, value, message):
    with pytest.raises(ConfigError, match=rf"--{flag}:? .*{message}"):
        parse_settings([f"--{flag}", value])
