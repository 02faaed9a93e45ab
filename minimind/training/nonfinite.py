"""What is left of a step that was not finite: its pairs, in a file beside the run's other records.

micro-batches of all ranks -> blame -> what a user is told;  -> write_pairs -> nonfinite_step00000012.jsonl
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Sequence
from pathlib import Path

# More lines than these are left to the file.
_LISTED = 10


@dataclasses.dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """One micro-batch of a rank.

    Attributes:
        lines: of its pairs in the data file, from 1.
        finite: whether its log-probs and losses were.
    """

    lines: Sequence[int]
    finite: bool


def blame(ranks: Sequence[Sequence[MicroBatch]], data: Path) -> str:
    """The lines of the micro-batches that were not finite; of all if none can be singled out.

    Args:
        ranks: of every rank, the step's micro-batches.
        data: the preference file.
    """
    batches = list(itertools.chain.from_iterable(ranks))
    guilty = [batch for batch in batches if not batch.finite]
    lines = sorted(line for batch in guilty or batches for line in batch.lines)
    more = f" and {len(lines) - _LISTED} more" if len(lines) > _LISTED else ""
    listed = f"at lines {', '.join(map(str, lines[:_LISTED]))}{more} of {data}"
    if guilty:
        return f"Losses or log-probs were not finite in {len(guilty)} of {len(batches)} micro-batches: pairs {listed}"
    return f"The losses of all micro-batches were finite, so that any may have brought it about: pairs {listed}"


def write_pairs(folder: Path, step: int, data: Path, ranks: Sequence[Sequence[MicroBatch]]) -> str:
    """Write a step's pairs, one JSON object each: line in the data file, rank, micro-batch (from 1), whether that was
    finite, and the row.

    Args:
        folder: the run's.
        data: the preference file.
        ranks: of every rank, the step's micro-batches.

    Returns:
        Where they stand, or why they could not be written: that must not hide what happened.
    """
    path = folder / f"nonfinite_step{step:08d}.jsonl"
    places = [
        {"line": line, "rank": rank, "micro_batch": number, "finite": batch.finite}
        for rank, batches in enumerate(ranks)
        for number, batch in enumerate(batches, start=1)
        for line in batch.lines
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
