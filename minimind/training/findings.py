"""The guard's findings on disk: findings.jsonl in the run's folder, one line for each.

    Found -> add -> {"step", "set", "rule", "at", "text", "remedy", "form", "values"}
    a resumed run -> keep -> those up to its checkpoint

Text and remedy are what the console said. The report says them again, in its language, from the form and the numbers.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path

from minimind.diagnosis.run_files import FINDINGS_FILE
from minimind.durable import append_whole, keep_steps, step_lines
from minimind.engine.monitor import Outage
from minimind.training.events import Found


class FindingsFile:
    """Writes findings; only rank 0's does. A file that cannot be written costs findings, not the run.

    Args:
        folder: the run's folder.
        enabled: whether this rank writes.
    """

    def __init__(self, folder: Path, *, enabled: bool) -> None:
        self._path, self._enabled, self._outage = folder / FINDINGS_FILE, enabled, Outage(FINDINGS_FILE)

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
        messages: list[str] = []

        def cut() -> None:
            with contextlib.suppress(FileNotFoundError):  # nothing was found
                messages.extend(keep_steps(self._path, step))

        return [*self._attempt(cut), *messages]

    def keys(self) -> set[str]:
        """Of the findings in the file; none where it cannot be read, or on a rank that does not write."""
        found: set[str] = set()
        with contextlib.suppress(OSError):
            found.update(entry["key"] for _, entry in step_lines(self._path) if self._enabled and "key" in entry)
        return found

    def _attempt(self, action: Callable[[], object]) -> list[str]:
        return self._outage.attempt(action) if self._enabled else []
