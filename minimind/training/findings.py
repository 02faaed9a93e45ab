"""The guard's findings on disk: findings.jsonl in the run's folder, one line for each.

    Found -> add -> {"step", "set", "rule", "at", "text", "remedy", "form", "values"}
    a resumed run -> keep -> those up to its checkpoint

Text and remedy are what the console said. The report says them again, in its language, from the form and the numbers.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from minimind.checkpoints.manifest import write_atomically
from minimind.durable import append_whole
from minimind.engine.monitor import Outage
from minimind.training.events import Found

FINDINGS = "findings.jsonl"


class FindingsFile:
    """Writes findings; only rank 0's does. A file that cannot be written costs findings, not the run.

    Args:
        folder: the run's folder.
        enabled: whether this rank writes.
    """

    def __init__(self, folder: Path, *, enabled: bool) -> None:
        self._path, self._enabled, self._outage = folder / FINDINGS, enabled, Outage(FINDINGS)

    def add(self, key: str, found: Found) -> list[str]:
        """Write a finding, which `keep` knows by its key; returns messages for the user.

        `step` is where it was noticed, `at` the step of its numbers.
        """
        finding = found.finding
        entry = {"step": found.step, "set": found.name, "rule": finding.rule, "at": finding.step}
        said = {"text": finding.text, "remedy": finding.remedy, "form": finding.form, "values": dict(finding.values)}
        line = json.dumps({**entry, **said, "key": key}, ensure_ascii=False)
        return self._attempt(lambda: append_whole(self._path, f"{line}\n".encode()))

    def keep(self, step: int) -> list[str]:
        """Remove what was found after the checkpoint that a run resumes, since it will be found again."""
        return self._attempt(lambda: self._keep(step))

    def keys(self) -> set[str]:
        """Of the findings in the file; none where it cannot be read, or on a rank that does not write."""
        try:
            return {key for line in self._lines() if (key := _value_of(line, "key")) is not None}
        except (OSError, UnicodeError):
            return set()

    def _keep(self, step: int) -> None:
        lines = self._lines()
        kept = [line for line in lines if _value_of(line, "step", math.inf) <= step]
        if kept != lines:
            write_atomically(self._path, "".join(f"{line}\n" for line in kept))

    def _lines(self) -> list[str]:
        # Not splitlines: JSON leaves other line separators inside a text as they are.
        if not self._enabled or not self._path.is_file():
            return []
        return [line for line in self._path.read_text(encoding="utf-8").split("\n") if line]

    def _attempt(self, action: Callable[[], object]) -> list[str]:
        return self._outage.attempt(action) if self._enabled else []


def _value_of(line: str, name: str, otherwise: Any = None) -> Any:
    """A line that a kill cut off has no values."""
    try:
        return json.loads(line)[name]
    except (ValueError, KeyError, TypeError):
        return otherwise
