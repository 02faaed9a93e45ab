"""The preparing script.

    argv -> flags.py -> opening.py -> splitting.py -> loading.py -> building.py -> Report
    Report -> report.html, report.json, the console; the last lines are the command that trains

It accepts every flag of the job's script, so a training command becomes a preparing one by changing the script's name
and adding --job.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from minimind.config import FLAG, Settings
from minimind.data.left_out import words_of
from minimind.data.sources import find_sources
from minimind.data.template import ChatTemplate
from minimind.errors import ConfigError, DataError, one_line_errors
from minimind.inspection.building import build_report
from minimind.inspection.console import console_text
from minimind.inspection.flags import ranks_of, read_flags
from minimind.inspection.items import ITEMS
from minimind.inspection.loading import items_of, load_pairs, objective_of
from minimind.inspection.opening import Inputs, open_inputs, planned_world
from minimind.inspection.page import page
from minimind.inspection.report import Report, to_json
from minimind.inspection.splitting import split_rows
from minimind.objective.losses import Need
from minimind.plan.report import explicit_flags, launch_command
from minimind.ranks.launchers import rank_variables
from minimind.training.console import Console
from minimind.training.setup.row_options import shape_options
from minimind.training.tokenising_line import TokenisingLine

# Where nothing was given: the file to begin with.
_FILE = "ds_configs/zero2.json"


def main(argv: Sequence[str] | None = None) -> None:
    """Prepare. An error of the user is printed in one line, and the exit status is 1.

    Started by a launcher, the first rank works and the others end.
    """
    with one_line_errors():
        if {**rank_variables(os.environ), **os.environ}["RANK"] != "0":
            return
        prepare_data(sys.argv[1:] if argv is None else argv)


def prepare_data(argv: Sequence[str]) -> Report:
    """Look at the data of a training command, write the report and print it.

    Raises:
        MiniMindError: the flags are wrong, or the data or the tokenizer cannot be used.
    """
    own, settings = read_flags(argv)
    nodes, ranks_per_node = ranks_of(own, os.environ)
    world = planned_world(nodes, ranks_per_node)
    if not settings.config.engine.deepspeed:
        settings = settings.with_values({"deepspeed": _FILE}, FLAG)
    inputs = open_inputs(settings, world)
    _check_unlabelled(inputs)
    folder = Path(own.out)
    if own.eval_share is not None:
        settings = _split(settings, inputs, own.eval_share, folder)
        inputs = open_inputs(settings, world)
    loaded = load_pairs(inputs, TokenisingLine(Console(enabled=True), lambda: None))
    command = launch_command(explicit_flags(loaded.settings), nodes, ranks_per_node, loaded.settings.config.script)
    report = build_report(inputs, loaded, own, world, command)
    write(report, folder)
    print(console_text(report, colours=sys.stdout.isatty()))
    print(f"\nThe whole report is {folder / 'report.html'}. The run:\n\n{report.command}")
    return report


def _check_unlabelled(inputs: Inputs) -> None:
    """The report describes no answers with labels."""
    objective = objective_of(inputs)
    if objective is not None and Need.LABELS in objective.needs:
        raise ConfigError(
            f"--loss {objective.name} takes answers with labels, and this report describes pairs; the run itself lists "
            "wrong and long rows, and the numbers of labels, before it trains"
        )


def write(report: Report, folder: Path) -> None:
    """Write report.html and report.json.

    Raises:
        DataError: they cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "report.html").write_text(page(report), encoding="utf-8")
        (folder / "report.json").write_text(to_json(report), encoding="utf-8")
    except OSError as error:
        raise DataError(f"{folder}: cannot write the report ({error}); give another --out") from error


def _split(settings: Settings, inputs: Inputs, share: float, folder: Path) -> Settings:
    """Settings whose data are the files of a split."""
    data = inputs.settings.config.data
    sources, kind = find_sources(data.data_path), ITEMS[inputs.settings.config.items]
    shapes = [dataclasses.replace(shape_options(data, source), items=items_of(inputs)) for source in sources]
    for source, options in zip(sources, shapes, strict=True):
        if options.dataset_info is not None:
            raise ConfigError(
                f"--eval_share: {options.dataset_info.origin} names the columns of {source.short_name}, but not those "
                "of the files that would be written; rename the columns in the data first"
            )
    split = split_rows(
        sources,
        shapes,
        words_of(ChatTemplate(inputs.tokenizer)) if kind.has_prompts else frozenset(),
        share=share,
        seed=data.seed,
        folder=folder,
    )
    print(
        f"{split.eval_prompts} of {split.prompts} {kind.prompts} are held out: {split.eval_rows} rows in "
        f"{split.evaluation}, {split.train_rows} rows to train on\n"
    )
    # A file of a split has the weight of the file that its rows are from.
    train = tuple(f"{path}{source.weight_suffix}" for path, source in zip(split.train, sources, strict=True))
    return settings.with_values({"data_path": train, "eval_data_path": (str(split.evaluation),)}, FLAG)
