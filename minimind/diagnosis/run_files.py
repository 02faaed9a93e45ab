"""What a run has left in its folder, read for the report.

    save_dir: run.json, metrics.jsonl, findings.jsonl, samples.jsonl, ledger/, */export.json -> read_run -> RunFiles

A file that is not there is a part of the report that is not there: a run without held-out pairs has no answers, and a
pretraining run no ledger. Only run.json is needed.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from minimind.diagnosis import ledger
from minimind.durable import step_lines
from minimind.errors import DataError

RUN_FILE, METRICS_FILE, FINDINGS_FILE, SAMPLES_FILE = "run.json", "metrics.jsonl", "findings.jsonl", "samples.jsonl"
_EXPORT_FILE, _EVAL = "export.json", "eval/"

Entry = Mapping[str, Any]
Curve = list[tuple[int, float]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunFiles:
    """The records of a run.

    Attributes:
        folder: the run's.
        record: of run.json.
        entries: lines of metrics.jsonl, each with its step.
        findings: of the guard, each with step, set, rule, text and remedy.
        samples: answers, each with step, prompt and answer.
        exports: of each export.json that was found, in a folder of the run's.
        rows: the ledger; None without one.
    """

    folder: Path
    record: Mapping[str, Any]
    entries: Sequence[Entry]
    findings: Sequence[Entry]
    samples: Sequence[Entry]
    exports: Sequence[Entry]
    rows: ledger.Ledger | None

    @property
    def name(self) -> str:
        """What the report calls it."""
        return self.folder.name or str(self.folder)

    @property
    def settings(self) -> Mapping[str, Mapping[str, Any]]:
        """Flag -> its value and origin."""
        return self.record.get("settings", {})

    @property
    def identity(self) -> Mapping[str, Any]:
        """What the checkpoints say of the run."""
        return self.record.get("identity", {})

    @property
    def steps(self) -> int:
        """The last global step that was logged."""
        return max((entry["step"] for entry in self.entries), default=0)

    @property
    def sets(self) -> tuple[str, ...]:
        """What the metrics of each held-out set begin with: "eval/", "eval/zh/"."""
        return held_out_prefixes(self.entries)

    def names(self, prefix: str) -> list[str]:
        """Metrics whose names begin so, and that have a value."""
        found = dict.fromkeys(name for entry in self.entries for name in entry if name.startswith(prefix))
        return [name for name in found if self.curve(name)]

    def curve(self, name: str) -> Curve:
        """Step and value of a metric where it was logged as a finite number."""
        values = ((entry["step"], entry.get(name)) for entry in self.entries)
        return [(step, float(v)) for step, v in values if isinstance(v, int | float) and math.isfinite(v)]


def read_run(folder: Path, exports: Iterable[Path] = ()) -> RunFiles:
    """The records in a run's folder.

    Args:
        exports: further folders with an export.json.

    Raises:
        DataError: it is no run's folder, or a record cannot be read.
    """
    path = folder / RUN_FILE
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{folder}: not the folder of a run: {RUN_FILE} cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise DataError(f"{path}: damaged ({error})") from error
    found = sorted((*folder.glob(_EXPORT_FILE), *folder.glob(f"*/{_EXPORT_FILE}")))
    given = [one if one.name == _EXPORT_FILE else one / _EXPORT_FILE for one in exports]
    return RunFiles(
        folder=folder.resolve(),
        record=record,
        entries=read_entries(folder / METRICS_FILE),
        findings=read_entries(folder / FINDINGS_FILE),
        samples=read_entries(folder / SAMPLES_FILE),
        exports=[_export(one) for one in (*found, *given)],
        rows=ledger.read(folder) if ledger.size(folder) else None,
    )


def held_out_prefixes(entries: Iterable[Entry]) -> tuple[str, ...]:
    """What the metrics of each held-out set begin with, in the order of their first evaluations."""
    names = (name for entry in entries for name in entry if name.startswith(_EVAL) and name.endswith("/loss"))
    return tuple(dict.fromkeys(name.removesuffix("loss") for name in names))


def read_entries(path: Path) -> list[Entry]:
    """The lines of a run's records, each with its step; none if there is no such file.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        return [entry for _, entry in step_lines(path)]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error})") from error


def _export(path: Path) -> Entry:
    try:
        return {"path": str(path.parent), **json.loads(path.read_text(encoding="utf-8"))}
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{path}: not the record of an export ({error})") from error
