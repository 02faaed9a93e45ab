"""Flags as dataclass fields, and the flat view of a composition of sections."""

from __future__ import annotations

import dataclasses

import pytest

from minimind.config.fields import absent, fields_of, flag, flat_values, replace_values


@dataclasses.dataclass(frozen=True, kw_only=True)
class Oven:
    degrees: int = flag(180, "temperature", low=20, above=10)
    fan: bool = flag(False, "circulating air")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cake:
    sugar: float | None = flag(None, "grams", low=0)
    shape: str = flag("round", "of the tin", choices=["round", "square"])
    fillings: tuple[str, ...] = flag((), "from the bottom up")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Baking:
    oven: Oven = dataclasses.field(default_factory=Oven)
    cake: Cake = dataclasses.field(default_factory=Cake)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ColdOven(Oven):
    degrees: int = flag(4, "temperature of a fridge")
    fan: bool = absent(True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cooling:
    oven: ColdOven = dataclasses.field(default_factory=ColdOven)


def test_fields_have_section_kind_default_and_bounds():
    found = fields_of(Baking)
    assert [(item.name, item.section, item.kind, item.many, item.optional, item.default) for item in found] == [
        ("degrees", "oven", int, False, False, 180),
        ("fan", "oven", bool, False, False, False),
        ("sugar", "cake", float, False, True, None),
        ("shape", "cake", str, False, False, "round"),
        ("fillings", "cake", str, True, False, ()),
    ]
    degrees, _, sugar, shape, _ = (item.metadata for item in found)
    assert (degrees.help, degrees.low, degrees.above, degrees.choices) == ("temperature", 20, 10, None)
    assert (sugar.low, sugar.above) == (0, None)
    assert shape.choices == ("round", "square")


def test_a_name_in_two_sections_is_refused():
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Timer:
        fan: int = flag(1, "minutes")

    job = dataclasses.make_dataclass("Job", [("oven", Oven), ("timer", Timer)], frozen=True, kw_only=True)
    with pytest.raises(TypeError, match="Job: --fan is in oven and in timer"):
        fields_of(job)


def test_values_are_read_and_replaced_by_flat_names():
    config = Baking(cake=Cake(sugar=120.0))
    assert flat_values(config) == {"degrees": 180, "fan": False, "sugar": 120.0, "shape": "round", "fillings": ()}
    changed = replace_values(config, {"fan": True, "sugar": None, "degrees": 200})
    assert changed == Baking(oven=Oven(degrees=200, fan=True), cake=Cake(sugar=None))
    assert config == Baking(cake=Cake(sugar=120.0))
    assert replace_values(config, {}) == config
    with pytest.raises(KeyError, match="salt"):
        replace_values(config, {"salt": 1})


@pytest.mark.parametrize("hint", [list, int | str, int | str | None, None])
def test_a_type_that_no_command_line_can_give_is_refused(hint):
    section = dataclasses.make_dataclass("Section", [("rolls", hint, flag(None, "help"))], kw_only=True)
    job = dataclasses.make_dataclass("Job", [("section", section)], kw_only=True)
    with pytest.raises(TypeError, match=r"--rolls: .* is not bool, int, float or str"):
        fields_of(job)


def test_a_section_of_another_job_overrides_defaults_and_has_no_absent_flag():
    (degrees,) = fields_of(Cooling)
    assert (degrees.name, degrees.default, degrees.metadata.help) == ("degrees", 4, "temperature of a fridge")
    assert flat_values(Cooling()) == {"degrees": 4}
    assert Cooling().oven.fan is True
    with pytest.raises(KeyError):
        replace_values(Cooling(), {"fan": False})
