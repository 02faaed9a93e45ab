"""The command line of a job, generated from its configuration class.

    argv -> parse_settings -> Settings

The parser has one argument group per section and one flag per field.
"""

from __future__ import annotations

import argparse
import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NoReturn, overload

from minimind.config.fields import Flag, fields_of, replace_values
from minimind.config.generations import with_generation_sizes
from minimind.config.jobs import DPOConfig
from minimind.config.settings import DEFAULT, FLAG, Job, Settings
from minimind.errors import ConfigError

# The DeepSpeed launcher adds this flag. Ranks read LOCAL_RANK from the environment instead.
_LOCAL_RANK = "local_rank"


class Parser(argparse.ArgumentParser):
    """argparse whose errors are ConfigErrors.

    Attributes:
        agreed: passed on to the errors; see `MiniMindError`.
    """

    agreed = False

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see --help", agreed=self.agreed)


@overload
def parse_settings(argv: Sequence[str], *, agreed: bool = False) -> Settings[DPOConfig]: ...


@overload
def parse_settings(argv: Sequence[str], job: type[Job], *, agreed: bool = False) -> Settings[Job]: ...


def parse_settings(argv: Sequence[str], job: type[Any] = DPOConfig, *, agreed: bool = False) -> Settings[Any]:
    """Settings of a job from command-line arguments.

    Args:
        job: the configuration class of the job.
        agreed: another rank raises the same error and reports it; see `MiniMindError`.

    Raises:
        ConfigError: lists all unknown flags, each with the most similar flag, and all values out of range. A value of
            the wrong type is reported alone, because argparse stops there.
    """
    flags = {flag.name: flag for flag in fields_of(job)}
    values = read_values(build_parser(job, agreed=agreed), flags, argv)
    origins = {name: FLAG if name in values else DEFAULT for name in flags}
    return with_generation_sizes(Settings(config=replace_values(job(), values), origins=origins))


def read_values(parser: Parser, flags: Mapping[str, Flag], argv: Sequence[str]) -> dict[str, Any]:
    """The values that a command line gives, checked; names of positional arguments are among them.

    Args:
        parser: knows these flags, see `add_flag`.
        flags: name -> flag.

    Raises:
        ConfigError: see `parse_settings`.
    """
    # parse_args would stop at unknown flags, with a message that has no hint.
    given, unknown = parser.parse_known_args(list(argv))
    positional = {name: value for name, value in vars(given).items() if name not in flags and name != _LOCAL_RANK}
    values = {name: value for name, value in vars(given).items() if name in flags}
    # A value without a flag is most often the value of an unknown flag, so it is reported only if there is none.
    problems = [_unrecognized(argument, flags) for argument in unknown if argument.startswith("-")]
    if unknown and not problems:
        problems = [f"unrecognized argument: {argument}" for argument in unknown]
    problems += [problem for name, value in values.items() if (problem := _out_of_range(flags[name], value))]
    if problems:
        raise ConfigError.from_problems(problems, agreed=parser.agreed)
    # A command line cannot give None; 0 and "" stand for it.
    emptied = {name for name in values if flags[name].optional and not flags[name].metadata.zero_is_a_value}
    values = {name: value or None if name in emptied else value for name, value in values.items()}
    values |= {name: tuple(filter(None, value)) for name, value in values.items() if flags[name].many}
    return values | positional


def build_parser(job: type[Any] = DPOConfig, *, agreed: bool = False) -> Parser:
    """The parser of a job's flags; its result has no entry for a flag that was not given."""
    parser = Parser(
        prog=f"deepspeed {job.script}",
        description=job.description,
        allow_abbrev=False,  # otherwise an old command changes its meaning when a longer flag is added
        argument_default=argparse.SUPPRESS,
    )
    parser.agreed = agreed
    parser.add_argument(f"--{_LOCAL_RANK}", type=int, help=argparse.SUPPRESS)
    groups: dict[str, Any] = {}
    for flag in fields_of(job):
        if flag.section not in groups:
            groups[flag.section] = parser.add_argument_group(flag.section)
        add_flag(groups[flag.section], flag)
    return parser


def add_flag(group: Any, flag: Flag) -> None:
    """Add a flag to a parser or a group of one."""
    options: dict[str, Any] = {"help": _help_of(flag), "type": flag.kind, "choices": flag.metadata.choices}
    if flag.kind is bool:
        # bool("False") is True, so argparse must not convert with bool.
        options = {"help": _help_of(flag), "type": _zero_or_one, "metavar": "{0,1}"}
        if flag.metadata.alone:
            options |= {"nargs": "?", "const": True}
    if flag.many:
        # A flag that is given again adds to what it has; argparse's own rule is that the last one wins.
        options |= {"nargs": "+", "action": "extend"}
    group.add_argument(f"--{flag.name}", **options)


def check_misspelt(arguments: Iterable[str], own: Iterable[str], job: type[Any] = DPOConfig) -> None:
    """Report flags that are similar to one that a script has besides those of a job; `parse_settings` reports others.

    Args:
        arguments: what is left when the script's own flags are parsed.
        own: names of these flags.

    Raises:
        ConfigError: there is such a flag.
    """
    own = set(own)
    names = [*own, *(flag.name for flag in fields_of(job))]
    for argument in arguments:
        name = argument.split("=")[0].removeprefix("--")
        similar = difflib.get_close_matches(name, names, n=1, cutoff=0.5) if argument.startswith("--") else []
        if similar and name not in names and similar[0] in own:
            raise ConfigError(f"unrecognized argument: --{name}; did you mean --{similar[0]}?")


def _help_of(flag: Flag) -> str:
    shown = int(flag.default) if isinstance(flag.default, bool) else flag.default
    text = flag.metadata.help + (f" (default: {shown})" if shown not in (None, ()) else "")
    return text.replace("%", "%%")  # argparse formats the text with the % operator


def _zero_or_one(text: str) -> bool:
    if text not in ("0", "1"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither 0 nor 1")
    return text == "1"


def _unrecognized(argument: str, flags: Iterable[str]) -> str:
    given = argument.split("=")[0]
    # The cutoff accepts a missing or a wrong letter and rejects unrelated names.
    near = difflib.get_close_matches(given.lstrip("-"), flags, n=1, cutoff=0.5)
    hint = f"did you mean --{near[0]}?" if near else "see --help"
    return f"unrecognized argument: {given}; {hint}"


def _out_of_range(flag: Flag, value: Any) -> str | None:
    low, above = flag.metadata.low, flag.metadata.above
    # argparse accepts "nan" and "inf" as floats.
    if isinstance(value, float) and not math.isfinite(value):
        return f"--{flag.name} {value} is not a finite number"
    if low is not None and value < low:
        return f"--{flag.name} {value} is below {low:g}"
    if above is not None and value <= above:
        return f"--{flag.name} {value} is not above {above:g}"
    return None
