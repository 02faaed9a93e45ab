"""Flags for the optimizer. The defaults are those of MiniMind2's train_dpo.py, or keep its behaviour."""

from __future__ import annotations

import dataclasses

import pytest

from minimind.config import OptimisationConfig, parse_settings
from minimind.errors import ConfigError


def test_defaults_are_minimind_s():
    assert dataclasses.asdict(OptimisationConfig()) == {
        "epochs": 1,
        "max_steps": None,
        "batch_size": 4,
        "accumulation_steps": 1,
        "micro_batch_tokens": None,
        "optimizer": "adamw",
        "learning_rate": 4e-8,
        "lr_schedule": "minimind",
        "warmup_steps": 0,
        "warmup_ratio": None,
        "decay_ratio": None,
        "grad_clip": 1.0,
        "dtype": "bfloat16",
    }


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("epochs", "0", "is below 1"),
        ("max_steps", "-1", "is below 0"),
        ("batch_size", "0", "is below 1"),
        ("batch_size", "-2", "is below 1"),
        ("accumulation_steps", "0", "is below 1"),
        ("micro_batch_tokens", "-1", "is below 0"),
        ("learning_rate", "0", "is not above 0"),
        ("learning_rate", "nan", "is not a finite number"),
        ("learning_rate", "inf", "is not a finite number"),
        ("warmup_steps", "-1", "is below 0"),
        ("warmup_ratio", "-0.1", "is below 0"),
        ("decay_ratio", "0", "is not above 0"),
        ("lr_schedule", "step", "invalid choice: 'step'"),
        ("grad_clip", "-0.5", "is below 0"),
        ("dtype", "fp8", "invalid choice: 'fp8'"),
    ],
)
def test_a_value_that_is_not_allowed_is_refused(flag, value, message):
    with pytest.raises(ConfigError, match=rf"--{flag}:? .*{message}"):
        parse_settings([f"--{flag}", value])
