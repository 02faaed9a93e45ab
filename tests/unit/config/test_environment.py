"""Switches in the environment: they have the effect of flags, and bad values are refused."""

from __future__ import annotations

import pytest

from minimind.config import parse_settings
from minimind.config.environment import with_switches
from minimind.errors import ConfigError


@pytest.mark.parametrize("value", [None, "", "1"])
def test_without_a_switch_nothing_changes(monkeypatch, value):
    for variable in ("MINIMIND_NATIVE", "MINIMIND_SHORTCUTS"):
        monkeypatch.delenv(variable, raising=False)
        if value is not None:
            monkeypatch.setenv(variable, value)
    settings = parse_settings(["--kernels", "auto"])
    assert with_switches(settings) == settings


@pytest.mark.parametrize(
    ("variable", "expected"),
    [
        ("MINIMIND_NATIVE", {"kernels": "torch", "keep_memory": False}),
        ("MINIMIND_SHORTCUTS", {"disable_patches": "all"}),
    ],
)
def test_a_switch_has_the_effect_of_flags(monkeypatch, variable, expected):
    monkeypatch.setenv(variable, "0")
    before = parse_settings([])
    after = with_switches(before)
    assert {
        name: after.values[name] for name, value in before.values.items() if after.values[name] != value
    } == expected
    assert {after.origins[name] for name in expected} == {"environment"}


def test_another_value_is_refused(monkeypatch):
    monkeypatch.setenv("MINIMIND_NATIVE", "no")
    with pytest.raises(ConfigError, match=r"MINIMIND_NATIVE=no: use 0 \(off\) or 1"):
        with_switches(parse_settings([]))
