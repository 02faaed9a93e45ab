"""A run as the report shows it: its files, and what its ledger says.

folder -> open_reported -> ReportedRun
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path

from minimind.diagnosis.analysis import PairAnalysis, analyse
from minimind.diagnosis.run_files import RunFiles, read_run


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReportedRun:
    """One run of a report.

    Attributes:
        pairs: None without a ledger, or if its loss has no margins.
    """

    files: RunFiles
    pairs: PairAnalysis | None


def open_reported(folder: Path, exports: Iterable[Path] = (), *, texts: bool = True) -> ReportedRun:
    """Read a run, and analyse its pairs.

    Args:
        exports: further folders with an export.json.
        texts: read the texts of single rows, too.

    Raises:
        DataError: it is no run's folder, or a record cannot be read.
    """
    files = read_run(folder, exports)
    pairs = None if files.rows is None else analyse(files.rows, files.settings, texts=texts)
    return ReportedRun(files=files, pairs=pairs)
