"""What is left of a step that was not finite: its pairs, in a file beside the run's other records."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path


def write_pairs(folder: Path, step: int, data: Path, lines: Sequence[Sequence[Sequence[int]]]) -> str:
    """Write a step's pairs, one JSON object each: line in the data file, rank, micro-batch (from 1) and the row.

    Args:
        folder: the run's.
        data: the preference file.
        lines: of every rank's micro-batches, in the data file, from 1.

    Returns:
        Where they stand, or why they could not be written: that must not hide what happened.
    """
    path = folder / f"nonfinite_step{step:08d}.jsonl"
    places = [
        {"line": line, "rank": rank, "micro_batch": number}
        for rank, batches in enumerate(lines)
        for number, batch in enumerate(batches, start=1)
        for line in batch
    ]
    wanted = {place["line"] for place in places}
    try:
        with data.open("rb") as file:
            numbered = itertools.islice(enumerate(file, start=1), max(wanted))
            rows = {number: row for number, row in numbered if number in wanted}
        found = ({**place, "row": json.loads(rows[place["line"]])} for place in places)
        path.write_text("".join(json.dumps(one, ensure_ascii=False) + "\n" for one in found), encoding="utf-8")
    except (OSError, ValueError, KeyError) as error:
        return f"could not be written to {path} ({error})"
    return f"stand in {path}, by rank and micro-batch"
