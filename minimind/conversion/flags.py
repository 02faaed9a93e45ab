"""Flags of the scripts that read trained weights: the model flags that they share, and the command line of each.

    script's own section of flags + model flags -> script_parser -> read_flags -> values by name

Model flags are those of training, with its names, types and bounds: they say what a `.pth` does not tell, and what they
say of weights that do tell is compared with them.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from minimind.config import DPOConfig, Flag, fields_of
from minimind.config.command_line import Parser, add_flag, read_values
from minimind.weights.inferred_config import NOT_IN_PTH

# Sizes that every form of weights tells.
SIZES = ("generation", "hidden_size", "num_hidden_layers", "use_moe")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScriptFlags:
    """A parsed command line.

    Attributes:
        positional: name -> value of the arguments without a flag.
        own: name -> value of the script's own flags, defaults included.
        model: name -> value of the model flags that were given.
    """

    positional: Mapping[str, Any]
    own: Mapping[str, Any]
    model: Mapping[str, Any]


def model_flags() -> tuple[Flag, ...]:
    """The flags of training that describe a model, without defaults: the weights have these values."""
    named = {flag.name: flag for flag in fields_of(DPOConfig)}
    return tuple(dataclasses.replace(named[name], default=None) for name in (*SIZES, *NOT_IN_PTH))


def script_parser(job: type[Any], positional: Mapping[str, str]) -> Parser:
    """The parser of a script.

    Args:
        job: a dataclass of sections of flags, with `script` and `description`, as the configuration of a job.
        positional: name -> help of the arguments without a flag.
    """
    # SUPPRESS: flags that were not given have no entry in the result.
    parser = Parser(
        prog=f"python {job.script}",
        description=job.description,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    for name, text in positional.items():
        parser.add_argument(name, help=text, metavar=name.upper())
    for flag in fields_of(job):
        add_flag(parser, flag)
    group = parser.add_argument_group("model", "what a .pth does not tell; compared with weights that do")
    for flag in model_flags():
        add_flag(group, flag)
    return parser


def read_flags(parser: Parser, job: type[Any], positional: Sequence[str], argv: Sequence[str]) -> ScriptFlags:
    """Parse a command line.

    Raises:
        ConfigError: see `parse_settings`.
    """
    known = {flag.name: flag for flag in (*fields_of(job), *model_flags())}
    values = read_values(parser, known, argv)
    defaults = {flag.name: flag.default for flag in fields_of(job)}
    return ScriptFlags(
        positional={name: values[name] for name in positional},
        own={name: values.get(name, default) for name, default in defaults.items()},
        model={flag.name: values[flag.name] for flag in model_flags() if flag.name in values},
    )
