"""The guard's findings on disk: findings.jsonl in the run's folder, one line for each.

Found -> add -> {"step", "set", "rule", "at", "text", "remedy"};  a resumed run -> keep -> the lines that it knows of
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from pathlib import Path

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
        line = json.dumps({**entry, "text": finding.text, "remedy": finding.remedy, "key": key}, ensure_ascii=False)
        return self._attempt(lambda: append_whole(self._path, f"{line}\n".encode()))

    def keep(self, keys: Collection[str]) -> list[str]:
        """Remove what was found after the checkpoint that a run resumes, since it will be found again.

        Args:
            keys: of the findings that the checkpoint knows of.
        """
        return self._attempt(lambda: self._keep(keys))

    def _keep(self, keys: Collection[str]) -> None:
        lines = self._path.read_text(encoding="utf-8").splitlines() if self._path.is_file() else []
        kept = [line for line in lines if _key_of(line) in keys]
        if kept != lines:
            write_atomically(self._path, "".join(f"{line}\n" for line in kept))

    def _attempt(self, action: Callable[[], object]) -> list[str]:
        return self._outage.attempt(action) if self._enabled else []


def _key_of(line: str) -> str | None:
    """A line that a kill cut off has none."""
    try:
        return str(json.loads(line)["key"])
    except (ValueError, KeyError, TypeError):
        return None
