"""Flags for the model. The defaults are those of MiniMind2's train_dpo.py."""

from __future__ import annotations

import dataclasses

import pytest

from minimind.config import ModelConfig, parse_settings
from minimind.errors import ConfigError


def test_defaults_are_minimind_s():
    assert dataclasses.asdict(ModelConfig()) == {
        "from_weight": "full_sft",
        "reference_weight": None,
        "generation": None,
        "hidden_size": 512,  # MiniMind-3 has 768; the weights override it
        "num_hidden_layers": 8,
        "use_moe": False,
        "num_attention_heads": None,
        "num_experts_per_tok": None,
        "rope_theta": None,
        "dropout": False,
        "router_aux_loss_coef": None,
        "inference_rope_scaling": False,
    }


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("hidden_size", "0", "is below 1"),
        ("num_hidden_layers", "0", "is below 1"),
        ("num_attention_heads", "-1", "is below 0"),
        ("num_experts_per_tok", "-1", "is below 0"),
        ("rope_theta", "-1", "is below 0"),
        ("router_aux_loss_coef", "-0.1", "is below 0"),
        ("generation", "1", "invalid choice: 1"),
    ],
)
def test_a_value_that_is_not_allowed_is_refused(flag, value, message):
    with pytest.raises(ConfigError, match=rf"--{flag}:? .*{message}"):
        parse_settings([f"--{flag}", value])


@pytest.mark.parametrize(("given", "value"), [((), None), (("0",), 0.0), (("0.5",), 0.5)])
def test_a_coefficient_of_0_is_not_the_configuration_s(given, value):
    flags = ("--router_aux_loss_coef", *given) if given else ()
    assert parse_settings(flags).config.model.router_aux_loss_coef == value
