"""Settings: each flag name is routed to its section, and every value keeps its origin."""

from __future__ import annotations

import pytest

from minimind.config import DEEPSPEED_FILE, DEFAULT, FLAG, WEIGHTS, DPOConfig, flat_values, parse_settings


def test_values_from_elsewhere_replace_all():
    settings = parse_settings(["--hidden_size", "64"]).with_values({"hidden_size": 768, "batch_size": 2}, WEIGHTS)
    assert settings.config.model.hidden_size == 768
    assert settings.config.optimisation.batch_size == 2
    assert settings.origins["hidden_size"] == settings.origins["batch_size"] == WEIGHTS
    assert not settings.explicit("hidden_size")


def test_defaults_from_elsewhere_leave_flags_alone():
    given = parse_settings(["--batch_size", "2"])
    settings = given.with_defaults({"batch_size": 8, "grad_clip": 0.5}, DEEPSPEED_FILE)
    assert settings.config.optimisation.batch_size == 2
    assert settings.config.optimisation.grad_clip == 0.5
    assert settings.origins["batch_size"] == FLAG
    assert settings.origins["grad_clip"] == DEEPSPEED_FILE
    # The original settings are unchanged.
    assert given.config.optimisation.grad_clip == 1.0
    assert given.origins["grad_clip"] == DEFAULT


def test_values_are_flat():
    settings = parse_settings(["--beta", "0.3", "--save_dir", "here"])
    assert settings.values == {**flat_values(DPOConfig()), "beta": 0.3, "save_dir": "here"}


def test_an_unknown_name_is_a_defect():
    with pytest.raises(KeyError, match="batchsize"):
        parse_settings([]).with_values({"batchsize": 1}, WEIGHTS)
