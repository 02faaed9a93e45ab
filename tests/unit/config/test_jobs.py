"""The DPO job: its sections, whose flag names are unique."""

from __future__ import annotations

import dataclasses
from collections import Counter

import pytest

from minimind.config import (
    AdapterConfig,
    DataConfig,
    DPOConfig,
    EngineConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimisationConfig,
    RunConfig,
    SampleConfig,
    fields_of,
)

SECTIONS = {
    "data": DataConfig,
    "model": ModelConfig,
    "adapters": AdapterConfig,
    "objective": ObjectiveConfig,
    "optimisation": OptimisationConfig,
    "engine": EngineConfig,
    "run": RunConfig,
    "samples": SampleConfig,
}


def test_a_dpo_job_has_eight_sections_in_order():
    config = DPOConfig()
    assert {field.name: type(getattr(config, field.name)) for field in dataclasses.fields(config)} == SECTIONS
    assert list(SECTIONS) == list(dict.fromkeys(item.section for item in fields_of(DPOConfig)))


def test_every_flag_is_in_exactly_one_section():
    names = Counter(field.name for section in SECTIONS.values() for field in dataclasses.fields(section))
    assert set(names.values()) == {1}
    assert set(names) == {item.name for item in fields_of(DPOConfig)}


@pytest.mark.parametrize("section", SECTIONS.values())
def test_a_section_is_frozen_and_keyword_only(section):
    first = dataclasses.fields(section)[0]
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(section(), first.name, first.default)
    with pytest.raises(TypeError):
        section(first.default)


@pytest.mark.parametrize("item", fields_of(DPOConfig), ids=lambda item: item.name)
def test_a_default_is_within_the_limits_of_its_flag(item):
    value, limits = item.default, item.metadata
    if item.many:
        assert value == ()
        return
    assert value is None if item.optional else type(value) is item.kind
    if value is not None:
        assert limits.choices is None or value in limits.choices
        assert limits.low is None or value >= limits.low
        assert limits.above is None or value > limits.above
