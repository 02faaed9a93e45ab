"""The command line of a sweep: flags of the launcher, and every flag of training with one or several values.

argv -> read_flags -> SweepFlags: the launcher's arguments, save_dir, values of each flag

--beta 0.05,0.1              a comma separates values
--loss 'sigmoid:1,sft:1;ipo' a semicolon separates values that may contain commas; 'a,b;' is the one value a,b
--loss sigmoid --loss ipo    each time that a flag is given again is a value
--data_path a b              several files of one run; 'a b;c' are two values
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from minimind.config import DPOConfig, Flag, fields_of
from minimind.config.jobs import JOBS
from minimind.errors import ConfigError

# The launcher's flags that are passed on: with a value, and alone.
LAUNCHER_VALUES = (
    "hostfile include exclude num_nodes num_gpus master_port master_addr node_rank launcher launcher_args "
    "bind_core_list ssh_port"
).split()
LAUNCHER_SWITCHES = "no_ssh no_ssh_check force_multi bind_cores_to_rank".split()
# What the sweep gives to each run itself.
_OWN = {
    "save_dir": "it is the folder of the sweep, and each run gets one of its own in it",
    "save_weight": "weights of all runs have one name, in folders of their own",
}
# Flags whose values are lists: a comma alone does not say whether it separates values of the sweep.
_LISTS = {"loss": ":", "disable_patches": ""}
_DEFAULT_FOLDER = "out/sweep"

# One value of a flag: its words on the command line.
Value = tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SweepFlags:
    """What a command line asks for.

    Attributes:
        job: name of the job that is trained.
        launcher: arguments of the deepspeed launcher.
        save_dir: the sweep's folder.
        values: flag -> its values, in the order in which the flags are given; one value is for all runs.
    """

    job: str
    launcher: tuple[str, ...]
    save_dir: Path
    values: Mapping[str, tuple[Value, ...]]


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see --help")


class _InOrder(argparse.Action):
    """Keeps what is given to each flag, and the order in which flags are first given."""

    def __call__(self, parser, namespace, values, option_string=None):  # type: ignore[no-untyped-def]
        words = values if isinstance(values, list) else [values]
        namespace.given.setdefault(self.dest, []).append([str(word) for word in words])


def read_flags(argv: Sequence[str]) -> SweepFlags:
    """The flags of a sweep.

    Raises:
        ConfigError: lists unknown flags, flags that a sweep sets itself, and values that could mean two things.
    """
    job, argv = _job_of(argv)
    flags = {flag.name: flag for flag in fields_of(JOBS[job])}
    found, unknown = _parser(flags).parse_known_args(list(argv), argparse.Namespace(given={}))
    given: Mapping[str, list[list[str]]] = found.given
    names = ["job", *flags, *LAUNCHER_VALUES, *LAUNCHER_SWITCHES]
    problems = [_unrecognized(word, names) for word in unknown if word.startswith("-")]
    if unknown and not problems:
        problems = [f"unrecognized argument: {word}" for word in unknown]
    values: dict[str, tuple[Value, ...]] = {}
    for name, times in given.items():
        try:
            values[name] = split_values(flags[name], times)
        except ConfigError as error:
            problems.append(str(error))
    problems += [f"--{name} has several values: {why}" for name, why in _OWN.items() if len(values.get(name, ())) > 1]
    if values.pop("from_resume", None) is not None:
        problems.append("--from_resume: drop it: stopped runs are always resumed")
    folders = values.pop("save_dir", ((_DEFAULT_FOLDER,),))
    if "deepspeed" not in values:
        problems.append("--deepspeed FILE is missing, e.g. --deepspeed ds_configs/zero2.json")
    if problems:
        raise ConfigError.from_problems(problems)
    launcher = [f"--{name}={value}" for name in LAUNCHER_VALUES if (value := getattr(found, name)) is not None]
    launcher += [f"--{name}" for name in LAUNCHER_SWITCHES if getattr(found, name)]
    return SweepFlags(job=job, launcher=tuple(launcher), save_dir=Path(folders[0][0]), values=values)


def _job_of(argv: Sequence[str]) -> tuple[str, list[str]]:
    """The job, which decides what flags there are, and the other arguments."""
    parser = _Parser(add_help=False, allow_abbrev=False)
    _add_job(parser)
    given, rest = parser.parse_known_args(list(argv))
    return given.job, rest


def _add_job(parser: argparse.ArgumentParser) -> None:
    names = tuple(JOBS)
    parser.add_argument("--job", choices=names, default=DPOConfig.name, help="job that is trained (default: dpo)")


def split_values(flag: Flag, times: Sequence[Sequence[str]]) -> tuple[Value, ...]:
    """The values of a flag.

    Args:
        times: the words of each time that the flag was given.

    Raises:
        ConfigError: a comma could separate values or belong to one, a value is empty, or one is there twice.
    """
    if flag.many:
        words = [word for time in times for word in time]
        several = any(";" in word for word in words)
        values = [tuple(shlex.split(part)) for part in _split(" ".join(words), ";")] if several else [tuple(words)]
    else:
        texts = [time[0] for time in times]
        # Given again, each time is one value as it is, except for a semicolon at its end.
        split = _values_of(flag, texts[0]) if len(texts) == 1 else [text.removesuffix(";") for text in texts]
        values = [(text,) for text in split]
    if any(not value or (value == ("",) and len(values) > 1) for value in values):
        raise ConfigError(f"--{flag.name}: one of its values is empty")
    for value in values:
        if values.count(value) > 1:
            raise ConfigError(f"--{flag.name} {' '.join(value)}: the value is there twice")
    return tuple(values)


def _values_of(flag: Flag, text: str) -> list[str]:
    if ";" in text:
        return _split(text, ";")
    # A JSON object has commas of its own.
    if "," not in text or text.lstrip().startswith("{"):
        return [text]
    sign = _LISTS.get(flag.name)
    if (sign is not None and sign in text) or Path(text).exists():
        raise ConfigError(
            f"--{flag.name} {text}: a comma may separate values of the sweep or belong to one value; write '{text};' "
            f"for one value, or '{text.replace(',', ';')}' for {text.count(',') + 1}"
        )
    return _split(text, ",")


def _split(text: str, separator: str) -> list[str]:
    """Parts of a text, without an empty one behind a separator at its end."""
    return [part.strip() for part in text.strip().removesuffix(separator).split(separator)]


def _parser(flags: Mapping[str, Flag]) -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python launch/sweep.py",
        description="Train every combination of several values of flags, one run after the other.",
        epilog="Every flag of the job's script is accepted, with one value or several: --beta 0.05,0.1 --loss "
        "'sigmoid:0.8,sft:1;ipo'. The same command again skips finished runs and resumes stopped ones.",
        allow_abbrev=False,
    )
    _add_job(parser)
    parser.add_argument(f"--{'save_dir'}", action=_InOrder, help=f"folder of the sweep (default: {_DEFAULT_FOLDER})")
    for name in flags:
        if name != "save_dir":
            parser.add_argument(
                f"--{name}", action=_InOrder, nargs="+" if flags[name].many else None, help=argparse.SUPPRESS
            )
    group = parser.add_argument_group("of the deepspeed launcher, passed on")
    for name in LAUNCHER_VALUES:
        group.add_argument(f"--{name}")
    for name in LAUNCHER_SWITCHES:
        group.add_argument(f"--{name}", action="store_true")
    return parser


def _unrecognized(word: str, names: Sequence[str]) -> str:
    given = word.split("=")[0]
    near = difflib.get_close_matches(given.lstrip("-"), names, n=1, cutoff=0.5)
    return f"unrecognized argument: {given}; " + (f"did you mean --{near[0]}?" if near else "see --help")
