"""Report of a step whose gradient is not finite: which micro-batches were affected, and their pairs in a file.

error of train_step + micro-batches of all ranks -> NonFiniteReport.error_at -> an error that names step and lines
                                                                             -> nonfinite_step00000012.jsonl
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Sequence
from pathlib import Path

from minimind.data.packs import Batch
from minimind.data.sources import Content, Source, parse_json
from minimind.errors import DataError, TrainingError
from minimind.ranks.collectives import from_main, gather
from minimind.ranks.world import World

# Largest number of lines in a message; the file has all of them.
_LISTED = 10


@dataclasses.dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """One micro-batch of a rank.

    Attributes:
        lines: numbers of its pairs' rows in the source, from 1.
        finite: whether its log-probs and losses were finite.
    """

    lines: Sequence[int]
    finite: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class NonFiniteReport:
    """Makes the error of a step whose gradient is not finite.

    Attributes:
        folder: the run's folder; the file is written there.
        data: where the pairs are from.
        world: the ranks.
        latest: the file that names the newest checkpoint; None if the run writes none.
    """

    folder: Path
    data: Source
    world: World
    latest: Path | None

    def error_at(self, step: int, batches: Sequence[Batch], error: TrainingError) -> TrainingError:
        """The error with the step and its suspicious pairs; writes the step's pairs of all ranks. All ranks call it."""
        # Every rank fails at the same step, because DeepSpeed reduces the norm before it is checked.
        mine = [MicroBatch(lines=batch.lines, finite=ok) for batch, ok in zip(batches, error.finite, strict=True)]
        ranks = gather(self.world, mine)
        written = from_main(self.world, lambda: write_pairs(self.folder, step, self.data, ranks))
        newest = "there is no checkpoint"
        if self.latest is not None and self.latest.is_file():
            newest = f"the newest checkpoint is {self.latest.read_text()}"
        return TrainingError(
            f"step {step}: {error}. The update was not made; {newest}. {describe_nonfinite(ranks, self.data)}. The "
            f"step's pairs {written}.",
            agreed=error.agreed,
        )


def describe_nonfinite(ranks: Sequence[Sequence[MicroBatch]], data: Source) -> str:
    """Names the lines of the micro-batches that were not finite, or all lines if every micro-batch was finite.

    Args:
        ranks: the step's micro-batches of every rank.
        data: where the pairs are from.
    """
    batches = list(itertools.chain.from_iterable(ranks))
    affected = [batch for batch in batches if not batch.finite]
    lines = sorted(line for batch in affected or batches for line in batch.lines)
    listed = f"in {data.listed(lines, _LISTED)} of {data.name}"
    if affected:
        return f"Losses or log-probs were not finite in {len(affected)} of {len(batches)} micro-batches: pairs {listed}"
    return f"The losses of all micro-batches were finite, so any of them can be the cause: pairs {listed}"


def write_pairs(folder: Path, step: int, data: Source, ranks: Sequence[Sequence[MicroBatch]]) -> str:
    """Write a step's pairs, one JSON object each: line in the data file, rank, micro-batch (from 1), whether that was
    finite, and the row.

    Args:
        folder: the run's folder.
        data: where the pairs are from.
        ranks: the step's micro-batches of every rank.

    Returns:
        Where they are, or why they could not be written. A failure here must not hide the error that is reported.
    """
    path = folder / f"nonfinite_step{step:08d}.jsonl"
    entries = [
        {"line": line, "rank": rank, "micro_batch": number, "finite": batch.finite}
        for rank, batches in enumerate(ranks)
        for number, batch in enumerate(batches, start=1)
        for line in batch.lines
    ]
    wanted = {entry["line"] for entry in entries}
    try:
        # The source is read only up to the last wanted row.
        last = max(wanted)
        numbered = itertools.takewhile(lambda row: row[0] <= last, data.rows())
        rows = {number: _value(content) for number, content in numbered if number in wanted}
        found = ({**entry, "row": rows[entry["line"]]} for entry in entries)
        lines = (json.dumps(one, ensure_ascii=False, default=str) + "\n" for one in found)
        path.write_text("".join(lines), encoding="utf-8")
    except (OSError, ValueError, KeyError, DataError) as error:
        return f"could not be written to {path} ({error})"
    return f"are in {path}, by rank and micro-batch"


def _value(content: Content) -> object:
    return parse_json(content) if isinstance(content, bytes) else content
