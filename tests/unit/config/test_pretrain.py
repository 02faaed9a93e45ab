"""Defaults of pretraining: those of MiniMind's train_pretrain.py."""

from __future__ import annotations

import pytest

from minimind.config import PretrainConfig, SFTConfig, fields_of, parse_settings
from minimind.errors import ConfigError


def test_the_defaults_are_minimind_s():
    config = PretrainConfig()
    optimisation = config.optimisation
    assert (optimisation.learning_rate, optimisation.epochs, optimisation.batch_size) == (5e-4, 2, 32)
    assert (optimisation.accumulation_steps, optimisation.grad_clip) == (8, 1.0)
    assert (config.data.max_seq_len, config.run.save_weight, config.model.from_weight) == (340, "pretrain", "none")
    assert (config.model.generation, config.model.hidden_size, config.model.num_hidden_layers) == (3, 768, 8)


def test_generation_2_is_smaller():
    assert parse_settings(["--generation", "2"], PretrainConfig).config.model.hidden_size == 512
    assert parse_settings(["--hidden_size", "1024"], PretrainConfig).config.model.hidden_size == 1024


def test_flags_about_turns_are_absent():
    absent = {item.name for item in fields_of(SFTConfig)} - {item.name for item in fields_of(PretrainConfig)}
    assert absent == {
        "mask",
        "last_turn_only",
        "chat_template",
        "template_kwargs",
        "empty_think_ratio",
        "data_format",
    }
    with pytest.raises(ConfigError, match="unrecognized argument: --mask"):
        parse_settings(["--mask", "turns"], PretrainConfig)
