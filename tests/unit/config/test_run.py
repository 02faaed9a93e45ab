"""Flags for the course of a run. The defaults are those of MiniMind2's train_dpo.py where it has the flag."""

from __future__ import annotations

import dataclasses

import pytest

from minimind.config import RunConfig, parse_settings
from minimind.errors import ConfigError


def test_defaults_are_minimind_s():
    assert dataclasses.asdict(RunConfig()) == {
        "save_dir": "out/dpo",
        "run_name": None,
        "save_weight": "dpo",
        "save_dtype": "float16",  # as MiniMind writes its .pth
        "save_interval": 100,
        "log_interval": 100,
        "eval_interval": 0,
        "save_best": None,
        "early_stop": None,
        "guard": "warn",
        "ledger": False,
        "timeout": 1800,
        "use_wandb": False,
        "wandb_project": "MiniMind-DPO",
        "keep_checkpoints": None,
        "from_resume": False,
        "on_bad_checkpoint": "error",
    }


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("save_dtype", "float64", "invalid choice: 'float64'"),
        ("save_interval", "-1", "is below 0"),
        ("log_interval", "0", "is below 1"),
        ("eval_interval", "-1", "is below 0"),
        ("timeout", "0", "is below 1"),
        ("keep_checkpoints", "-1", "is below 0"),
        ("on_bad_checkpoint", "skip", "invalid choice: 'skip'"),
    ],
)
def test_a_value_that_is_not_allowed_is_refused(flag, value, message):
    with pytest.raises(ConfigError, match=rf"--{flag}:? .*{message}"):
        parse_settings([f"--{flag}", value])
