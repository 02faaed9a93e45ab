"""Defaults of fine-tuning: those of MiniMind's train_full_sft.py of each generation."""

from __future__ import annotations

import pytest

from minimind.config import SFTConfig, model_defaults, parse_settings
from minimind.config.generations import with_model_defaults
from minimind.errors import ConfigError


def test_the_defaults_are_minimind_s():
    config = SFTConfig()
    optimisation = config.optimisation
    assert (optimisation.learning_rate, optimisation.epochs, optimisation.batch_size) == (1e-5, 2, 16)
    assert (optimisation.accumulation_steps, optimisation.grad_clip) == (1, 1.0)
    assert (config.data.max_seq_len, config.run.save_weight, config.model.from_weight) == (768, "full_sft", "pretrain")
    assert (config.run.save_interval, config.run.log_interval) == (1000, 100)


def test_generation_2_has_its_own():
    settings = with_model_defaults(parse_settings(["--max_seq_len", "99"], SFTConfig), model_defaults(2))
    assert (settings.config.optimisation.learning_rate, settings.config.data.max_seq_len) == (1e-6, 99)
    assert with_model_defaults(parse_settings([], SFTConfig), model_defaults(3)).values["learning_rate"] == 1e-5


def test_a_flag_about_pairs_is_unknown():
    with pytest.raises(ConfigError, match="unrecognized argument: --beta"):
        parse_settings(["--beta", "0.1"], SFTConfig)
