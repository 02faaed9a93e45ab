"""Tables of flags: those of training, one table per section of the configuration, and those of other scripts.

DPOConfig               -> dpo_flags  -> FlagRow -> flag_tables -> Markdown
other configurations    -> job_flags, where they differ from DPO's -> FlagRow
argument parsers of plan.py and prepare_data.py -> plan_flags, prepare_flags -> FlagRow
ExportConfig, ChatConfig, EvaluateConfig -> export_flags, chat_flags, evaluate_flags -> FlagRow
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from minimind.chain.command import build_parser as chain_parser
from minimind.chat.command import ChatConfig
from minimind.config import DPOConfig, Flag, JobConfig, PretrainConfig, SFTConfig, fields_of
from minimind.conversion.command import ExportConfig
from minimind.diagnosis.command import build_parser as report_parser
from minimind.evaluation.command import EvaluateConfig
from minimind.inspection.flags import build_parser as prepare_parser
from minimind.plan.command import _parser as plan_parser
from tests.docs.language import Language


@dataclasses.dataclass(frozen=True, kw_only=True)
class FlagRow:
    """One flag as a table shows it.

    Attributes:
        section: heading of its table; empty for a table without one.
        default: as it is typed on the command line; None where nothing is given.
        choices: the values that are allowed; empty where the type alone decides.
    """

    name: str
    section: str
    default: Any
    choices: tuple[Any, ...]
    help: str


def dpo_flags() -> list[FlagRow]:
    """The flags of `launch/train_dpo.py`, in the order of `--help`."""
    return _rows_of_config(DPOConfig)


def job_flags(job: type[JobConfig]) -> list[FlagRow]:
    """The flags of another job whose default or meaning is not that of DPO's, in one table."""
    known = {one.name: one for one in fields_of(DPOConfig)}
    own = {one.name for one in fields_of(job) if one.name not in known or _differs(one, known[one.name])}
    return [dataclasses.replace(row, section="") for row in _rows_of_config(job) if row.name in own]


def _differs(one: Flag, other: Flag) -> bool:
    return (one.default, one.metadata) != (other.default, other.metadata)


def plan_flags() -> list[FlagRow]:
    """The flags that `launch/plan.py` has besides those of training."""
    return _rows_of(plan_parser())


def chain_flags() -> list[FlagRow]:
    """The flags of `launch/chain.py`."""
    return _rows_of(chain_parser())


def prepare_flags() -> list[FlagRow]:
    """The flags that `launch/prepare_data.py` has besides those of training."""
    return _rows_of(prepare_parser())


def export_flags() -> list[FlagRow]:
    """The flags that `launch/export.py` has besides those that describe a model."""
    return [dataclasses.replace(row, section="") for row in _rows_of_config(ExportConfig)]


def chat_flags() -> list[FlagRow]:
    """The flags that `launch/chat.py` has besides those that describe a model."""
    return [dataclasses.replace(row, section="") for row in _rows_of_config(ChatConfig)]


def evaluate_flags() -> list[FlagRow]:
    """The flags that `launch/evaluate.py` has besides those that describe a model."""
    rows = [dataclasses.replace(row, section="") for row in _rows_of_config(EvaluateConfig)]
    return [dataclasses.replace(row, default=" ".join(row.default)) if row.name == "tasks" else row for row in rows]


def report_flags() -> list[FlagRow]:
    """The flags of `launch/report.py`."""
    return _rows_of(report_parser())


def every_flag() -> list[FlagRow]:
    """The flags of all scripts."""
    return [row for rows in TABLES.values() for row in rows()]


def _rows_of_config(job: type[Any]) -> list[FlagRow]:
    return [
        FlagRow(
            name=one.name,
            section=one.section.capitalize(),
            default=int(one.default) if isinstance(one.default, bool) else None if one.default == () else one.default,
            choices=one.metadata.choices or (),
            help=one.metadata.help,
        )
        for one in fields_of(job)
    ]


def _rows_of(parser: argparse.ArgumentParser) -> list[FlagRow]:
    return [
        FlagRow(
            name=action.option_strings[0].removeprefix("--"),
            section="",
            default=action.default or None,
            choices=(),
            # The default has a column of its own.
            help=(action.help or "").split(" (default: ")[0],
        )
        for action in parser._actions
        if action.option_strings and not isinstance(action, argparse._HelpAction)
    ]


def flag_tables(rows: Sequence[FlagRow], language: Language) -> list[str]:
    """Lines of Markdown: a table for each section, in the order of the rows, below its heading."""
    lines: list[str] = []
    for section in dict.fromkeys(row.section for row in rows):
        heading = [f"### {language.of(section)}", ""] if section else []
        lines += ["", *heading, *_table([row for row in rows if row.section == section], language)]
    return lines[1:]


def _table(rows: Sequence[FlagRow], language: Language) -> list[str]:
    header = " | ".join(language.of(word) for word in ("flag", "default", "meaning"))
    return [f"| {header} |", "| --- | --- | --- |", *(_line(row, language) for row in rows)]


def _line(row: FlagRow, language: Language) -> str:
    text = language.of(row.help)
    # Most help texts explain each choice. The choices are listed after those that do not.
    if any(str(choice) not in text for choice in row.choices):
        listed = language.comma.join(f"`{choice}`" for choice in row.choices)
        text += f"{language.semicolon}{language.of('one of')}{language.colon}{listed}"
    default = "" if row.default is None else f"`{row.default}`"
    # Markdown takes an angle bracket for an HTML tag, and a bar for the end of the cell.
    text = text.replace("<", "&lt;").replace("|", "\\|")
    return f"| `--{row.name}` | {default} | {text} |"


# Name of the generated part -> its rows.
TABLES: Mapping[str, Callable[[], list[FlagRow]]] = {
    "flags": dpo_flags,
    "pretrain flags": functools.partial(job_flags, PretrainConfig),
    "sft flags": functools.partial(job_flags, SFTConfig),
    "plan flags": plan_flags,
    "chain flags": chain_flags,
    "report flags": report_flags,
    "prepare flags": prepare_flags,
    "export flags": export_flags,
    "chat flags": chat_flags,
    "evaluate flags": evaluate_flags,
}
