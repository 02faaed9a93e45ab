"""Flags as fields of frozen dataclasses, and the flat view of a configuration that is made of such dataclasses.

    flag(default, help, ...)  ->  field of a section (DataConfig, ...)  ->  section of a job's configuration (DPOConfig)
    absent(value)             ->  field of a section of another job, which has no such flag
    fields_of(DPOConfig)      ->  every flag with its section, type, default and bounds, in the order of declaration

A flag's name is unique in a job's configuration, so code that handles flags by name needs no section.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

# Key of a flag's FlagMetadata in the metadata of its dataclass field.
_KEY = "flag"
AnyConfig = TypeVar("AnyConfig")


@dataclasses.dataclass(frozen=True, kw_only=True)
class FlagMetadata:
    """What the command line needs to know about a flag besides its name, type and default.

    Attributes:
        help: text of `--help`.
        choices: the allowed values; None allows all.
        low: the smallest allowed value.
        above: a bound that the value must exceed.
        zero_is_a_value: for a flag that may be None: a 0 on the command line is a 0, not "not given".
        alone: for a bool: the flag without a value is a 1.
    """

    help: str
    choices: tuple[Any, ...] | None = None
    low: float | None = None
    above: float | None = None
    zero_is_a_value: bool = False
    alone: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flag:
    """One flag of a job.

    Attributes:
        section: name of the field of the job's configuration that holds the flag's section.
        kind: bool, int, float or str.
        many: the value is a tuple of these; an empty one means "not given".
        optional: the value may be None, which means "not given". On the command line 0 or "" says the same, unless
            `zero_is_a_value`.
        default: the value without a flag.
        metadata: help, choices and bounds.
    """

    name: str
    section: str
    kind: type
    many: bool
    optional: bool
    default: Any
    metadata: FlagMetadata


def flag(
    default: Any,
    help: str,
    *,
    choices: Sequence[Any] | None = None,
    low: float | None = None,
    above: float | None = None,
    zero_is_a_value: bool = False,
    alone: bool = False,
) -> Any:
    """A dataclass field that is also a flag; see `FlagMetadata` for the arguments."""
    metadata = FlagMetadata(
        help=help,
        choices=None if choices is None else tuple(choices),
        low=low,
        above=above,
        zero_is_a_value=zero_is_a_value,
        alone=alone,
    )
    return dataclasses.field(default=default, metadata={_KEY: metadata})


def absent(value: Any) -> Any:
    """A dataclass field that overrides a flag of the base class: a job without the flag always has this value."""
    return dataclasses.field(default=value)


def fields_of(job: type[Any]) -> tuple[Flag, ...]:
    """Every flag of a job's configuration class, section by section, in the order of declaration.

    Raises:
        TypeError: two sections declare the same flag, or a flag has a type that no command line can give.
    """
    found: dict[str, Flag] = {}
    # The annotations are strings (PEP 563); get_type_hints turns them into types.
    sections = typing.get_type_hints(job)
    for section in (field.name for field in dataclasses.fields(job)):
        hints = typing.get_type_hints(sections[section])
        for field in (one for one in dataclasses.fields(sections[section]) if _KEY in one.metadata):
            # Origins, run.json and the command line know a flag by its name alone.
            if field.name in found:
                raise TypeError(f"{job.__name__}: --{field.name} is in {found[field.name].section} and in {section}")
            many = typing.get_origin(hints[field.name]) is tuple
            hint = typing.get_args(hints[field.name])[0] if many else hints[field.name]
            kind, optional = _kind_of(field.name, hint)
            found[field.name] = Flag(
                name=field.name,
                section=section,
                kind=kind,
                many=many,
                optional=optional,
                default=field.default,
                metadata=field.metadata[_KEY],
            )
    return tuple(found.values())


def _kind_of(name: str, hint: Any) -> tuple[type, bool]:
    """The type of a flag's value, and whether it may be None."""
    parts = set(typing.get_args(hint)) if isinstance(hint, types.UnionType) else {hint}
    kinds = parts - {types.NoneType}
    if len(kinds) != 1 or not kinds <= {bool, int, float, str}:
        raise TypeError(f"--{name}: {hint} is not bool, int, float or str, with or without None, nor a tuple of one")
    return kinds.pop(), types.NoneType in parts


def flat_values(config: object) -> dict[str, Any]:
    """Flag name -> value, of all sections."""
    return {item.name: getattr(getattr(config, item.section), item.name) for item in fields_of(type(config))}


def replace_values(config: AnyConfig, values: Mapping[str, Any]) -> AnyConfig:
    """A copy of a job's configuration with other values.

    Args:
        values: flag name -> value; each goes to the section that declares the flag.

    Raises:
        KeyError: no section declares one of the flags.
    """
    # Grouped by section, so that each frozen section is replaced once.
    sections = {item.name: item.section for item in fields_of(type(config))}
    changes: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        changes.setdefault(sections[name], {})[name] = value
    replaced = {section: dataclasses.replace(getattr(config, section), **change) for section, change in changes.items()}
    return typing.cast(AnyConfig, dataclasses.replace(typing.cast(Any, config), **replaced))
