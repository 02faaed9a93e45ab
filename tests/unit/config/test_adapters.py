"""Flags for adapters."""

from __future__ import annotations

import dataclasses

import pytest

from minimind.config import AdapterConfig, parse_settings
from minimind.errors import ConfigError


def test_without_flags_all_weights_train():
    assert dataclasses.asdict(AdapterConfig()) == {
        "lora_rank": None,
        "lora_alpha": None,
        "lora_dropout": 0.0,
        "lora_targets": "all-linear",
        "use_dora": False,
        "use_rslora": False,
        "lora_init": "default",
        "from_adapter": None,
        "lora_reference": "base",
        "quantize": "none",
        "merge": False,
    }
    assert parse_settings(["--lora_rank", "0"]).config.adapters.lora_rank is None


@pytest.mark.parametrize(
    ("flag", "value"),
    [("lora_rank", "-1"), ("lora_alpha", "0"), ("lora_dropout", "-0.1"), ("use_dora", "2")],
)
def test_values_out_of_range_are_refused(flag, value):
    with pytest.raises(ConfigError, match=f"--{flag}"):
        parse_settings([f"--{flag}", value])
