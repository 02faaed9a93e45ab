"""Settings find the section of each flag and record the origin of each value."""

from __future__ import annotations

import pytest

from minimind.config import DEEPSPEED_FILE, DEFAULT, FLAG, WEIGHTS, DPOConfig, flat_values, parse_settings


def test_with_values_replaces_flags_of_the_user():
    settings = parse_settings(["--hidden_size", "64"]).with_values({"hidden_size": 768, "batch_size": 2}, WEIGHTS)
    assert settings.config.model.hidden_size == 768
    assert settings.config.optimisation.batch_size == 2
    assert settings.origins["hidden_size"] == settings.origins["batch_size"] == WEIGHTS
    assert not settings.explicit("hidden_size")


def test_with_defaults_keeps_flags_of_the_user():
    given = parse_settings(["--batch_size", "2"])
    settings = given.with_defaults({"batch_size": 8, "grad_clip": 0.5}, DEEPSPEED_FILE)
    assert settings.config.optimisation.batch_size == 2
    assert settings.config.optimisation.grad_clip == 0.5
    assert settings.origins["batch_size"] == FLAG
    assert settings.origins["grad_clip"] == DEEPSPEED_FILE
    # The original settings are unchanged.
    assert given.config.optimisation.grad_clip == 1.0
    assert given.origins["grad_clip"] == DEFAULT


def test_values_lists_all_sections_by_flag_name():
    settings = parse_settings(["--beta", "0.3", "--save_dir", "here"])
    assert settings.values == {**flat_values(DPOConfig()), "beta": 0.3, "save_dir": "here"}


def test_an_unknown_flag_name_raises_key_error():
    with pytest.raises(KeyError, match="batchsize"):
        parse_settings([]).with_values({"batchsize": 1}, WEIGHTS)
