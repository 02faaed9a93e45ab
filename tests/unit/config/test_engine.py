"""Flags for the engines. Without them a run is plain: a live reference, no recomputation, no compilation."""

from __future__ import annotations

import dataclasses

import pytest

from minimind.config import EngineConfig, parse_settings
from minimind.errors import ConfigError


def test_defaults():
    assert dataclasses.asdict(EngineConfig()) == {
        "reference": "live",
        "disable_patches": None,
        "deepspeed": None,
        "reference_config": None,
        "reference_update": None,
        "device": None,
        "gradient_checkpointing": False,
        "use_compile": False,  # as in MiniMind
        "kernels": "auto",
        "keep_memory": True,
        "attention": "auto",
    }


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("reference", "frozen", "invalid choice: 'frozen'"),
        ("attention", "eager", "invalid choice: 'eager'"),
        ("kernels", "triton", "invalid choice: 'triton'"),
        ("gradient_checkpointing", "yes", "is neither 0 nor 1"),
    ],
)
def test_a_value_that_is_not_allowed_is_refused(flag, value, message):
    with pytest.raises(ConfigError, match=rf"--{flag}:? .*{message}"):
        parse_settings([f"--{flag}", value])
