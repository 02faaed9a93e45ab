"""The reporting script, and the report at the end of a run.

argv -> RUN ... -> open_reported of each -> page -> report.html; with --suspects a file of rows instead
end of a run    -> report_finished       -> report.html in its folder, where that is quick
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from minimind.diagnosis import ledger
from minimind.diagnosis.page import LANGUAGES, page
from minimind.diagnosis.reported import ReportedRun, open_reported
from minimind.diagnosis.run_files import read_run
from minimind.diagnosis.suspects import write_suspects
from minimind.diagnosis.texts import data_flags
from minimind.errors import ConfigError, DataError, MiniMindError

REPORT, _BOTH = "report.html", "both"
# Bytes of a ledger and of the files with its rows up to which a run reports by itself: about a second.
_QUICK_LEDGER, _QUICK_ROWS = 8 * 2**20, 32 * 2**20


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see --help")


def build_parser() -> argparse.ArgumentParser:
    """The parser of the script."""
    parser = _Parser(
        prog="python launch/report.py",
        description="One page about what runs have learnt: report.html. Several runs are shown side by side.",
        allow_abbrev=False,
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder of a run, its --save_dir")
    parser.add_argument(
        "--out", default=None, help="the page; without this flag report.html in the folder of the first run"
    )
    parser.add_argument(
        "--lang", default=_BOTH, choices=(*LANGUAGES, _BOTH), help="both: with a switch between them (default: both)"
    )
    parser.add_argument(
        "--export", nargs="+", default=(), metavar="FOLDER", help="folders of launch/export.py outside the run's"
    )
    parser.add_argument(
        "--suspects",
        default=None,
        metavar="FILE",
        help="write no page, but the training pairs that are probably mislabelled, ranked, as JSON lines with file, "
        "line and score, which training can read; needs --ledger 1 in the run",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Report. An error of the user is printed in one line, and the exit status is 1."""
    try:
        _report(sys.argv[1:] if argv is None else argv)
    except MiniMindError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(1)


def _report(argv: Sequence[str]) -> None:
    given = build_parser().parse_args(list(argv))
    folders = [Path(run) for run in given.runs]
    if given.suspects is not None:
        if len(folders) > 1 or given.out is not None:
            raise ConfigError("--suspects is about one RUN, and writes no page: drop the other runs and --out")
        run = read_run(folders[0])
        rows = ledger.read(folders[0]) if run.rows is None else run.rows
        number = write_suspects(rows, data_flags(run.settings), Path(given.suspects))
        print(f"{given.suspects}: {number} training pairs that the policy ranks the other way, the clearest first")
        return
    runs = [open_reported(folder, map(Path, given.export) if not i else ()) for i, folder in enumerate(folders)]
    path = Path(given.out) if given.out else folders[0] / REPORT
    write_page(runs, path, LANGUAGES if given.lang == _BOTH else (given.lang,))
    print(f"{path}: open it in a browser")


def write_page(runs: Sequence[ReportedRun], path: Path, languages: Sequence[str] = LANGUAGES) -> None:
    """Write the page.

    Raises:
        DataError: it cannot be written.
    """
    try:
        path.write_text(page(runs, languages), encoding="utf-8")
    except OSError as error:
        raise DataError(f"{path}: the report cannot be written ({error}); give another --out") from error


def report_finished(folder: Path) -> str:
    """Report on a run that has just ended, and say where; where that would take long, say how to do it.

    Never raises: the run is over, and its files are more than a page about them.
    """
    command = f"python launch/report.py {folder}"
    try:
        if ledger.size(folder) > _QUICK_LEDGER:
            return f"report: {command}"
        files = {Path(file) for source in ledger.sources(folder) for file in source.files}
        texts = sum(file.stat().st_size for file in files if file.is_file()) <= _QUICK_ROWS
        write_page([open_reported(folder, texts=texts)], folder / REPORT)
    except Exception as error:  # noqa: BLE001 - whatever it is, it must not fail the run
        return f"NO REPORT: {type(error).__name__}: {error}; once it is mended: {command}"
    return f"report: {folder / REPORT}" + ("" if texts else f", without the texts of pairs; with them: {command}")
