"""Flags for the preference pairs. The defaults are those of MiniMind2's train_dpo.py, or keep its behaviour."""

from __future__ import annotations

import dataclasses

import pytest

from minimind.config import DataConfig, parse_settings
from minimind.errors import ConfigError


def test_defaults_are_minimind_s():
    assert dataclasses.asdict(DataConfig()) == {
        "data_path": (),
        "data_format": "auto",
        "dataset_info": None,
        "pairing": "best_worst",
        "score_gap": 0.0,
        "filter_score_gap": None,
        "eval_data_path": (),
        "tokenizer_path": None,
        "chat_template": None,
        "template_kwargs": None,
        "mask": "turns",
        "last_turn_only": False,
        "max_seq_len": 1024,
        "on_long_row": "cut",
        "on_bad_row": "error",
        "dedup": False,
        "limit": None,
        "empty_think_ratio": 1.0,  # keeps all, as MiniMind2
        "shuffle": True,
        "seed": 42,
        "num_workers": 8,
        "cache_dir": None,
    }


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("max_seq_len", "1", "is below 2"),
        ("seed", "-1", "is below 0"),
        ("num_workers", "-1", "is below 0"),
        ("empty_think_ratio", "-0.1", "is below 0"),
        ("on_bad_row", "ignore", "invalid choice: 'ignore'"),
        ("on_long_row", "truncate", "invalid choice: 'truncate'"),
    ],
)
def test_a_value_that_is_not_allowed_is_refused(flag, value, message):
    with pytest.raises(ConfigError, match=rf"--{flag}:? .*{message}"):
        parse_settings([f"--{flag}", value])
