"""Flags for samples: off unless prompts are given."""

from __future__ import annotations

import pytest

from minimind.config import SampleConfig, parse_settings
from minimind.errors import ConfigError


@pytest.mark.parametrize(
    ("given", "is_on", "number"), [(None, False, None), ("0", False, 0), ("8", True, 8), ("a.jsonl", True, None)]
)
def test_a_number_or_a_file(given, is_on, number):
    section = SampleConfig(sample_prompts=given)
    assert (section.is_on, section.number) == (is_on, number)


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("sample_interval", "-1", "is below 0"),
        ("sample_tokens", "0", "is below 1"),
        ("sample_temperature", "-0.1", "is below 0"),
        ("sample_top_p", "0", "is not above 0"),
    ],
)
def test_a_value_that_is_not_allowed_is_refused(flag, value, message):
    with pytest.raises(ConfigError, match=rf"--{flag}:? .*{message}"):
        parse_settings([f"--{flag}", value])
