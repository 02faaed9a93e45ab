"""What every benchmarked trainer is given, and what it must give back.

The driver (`bench.py`) writes a folder with `task.json`, `pairs.jsonl` (rows that every trainer can train on, in
order), `start.pth`, `model/` and `tokenizer/`; a trainer reads it and writes `result.json`.
"""

from __future__ import annotations

import dataclasses
import json
import resource
from pathlib import Path


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """One measurement.

    Attributes:
        batch_size: pairs per step.
        warmup_steps, steps: steps not timed, steps timed, in this order.
        max_seq_len: tokens kept of a row.
        options: what tells one configuration of a trainer from another.
    """

    folder: str
    batch_size: int
    warmup_steps: int
    steps: int
    max_seq_len: int
    options: dict[str, object]

    @property
    def path(self) -> Path:
        return Path(self.folder)


def read_task(folder: str) -> Task:
    """The task that the driver left in a folder."""
    return Task(**json.loads((Path(folder) / "task.json").read_text()))


def write_result(task: Task, seconds: list[float], **more: object) -> None:
    """Seconds of each timed step, and the process's peak resident memory."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    result = {"seconds": seconds, "peak_memory_gib": peak, **more}
    (task.path / "result.json").write_text(json.dumps(result))
