"""Report of a step whose gradient is not finite: which micro-batches were affected, and their pairs in a file.

error of train_step + micro-batches of all ranks -> NonFiniteReport.error_at -> an error that names step and lines
                                                                             -> nonfinite_step00000012.jsonl
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from minimind.data.packs import Batch
from minimind.data.pair_tables import Rows
from minimind.data.sources import Source, parse_json
from minimind.errors import DataError, TrainingError
from minimind.ranks.collectives import from_main, gather
from minimind.ranks.world import World

# Largest number of rows of a source in a message; the file has all of them.
_LISTED = 10


@dataclasses.dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """One micro-batch of a rank.

    Attributes:
        indices: `PreferencePair.index` of its pairs.
        finite: whether its log-probs and losses were finite.
    """

    indices: Sequence[int]
    finite: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class NonFiniteReport:
    """Makes the error of a step whose gradient is not finite.

    Attributes:
        folder: the run's folder; the file is written there.
        data: the pairs that are trained on.
        world: the ranks.
        latest: the file that names the newest checkpoint; None if the run writes none.
    """

    folder: Path
    data: Rows
    world: World
    latest: Path | None

    def error_at(self, step: int, batches: Sequence[Batch], error: TrainingError) -> TrainingError:
        """The error with the step and its suspicious pairs; writes the step's pairs of all ranks. All ranks call it."""
        # Every rank fails at the same step, because DeepSpeed reduces the norm before it is checked.
        mine = [MicroBatch(indices=one.indices, finite=ok) for one, ok in zip(batches, error.finite, strict=True)]
        ranks = gather(self.world, mine)
        written = from_main(self.world, lambda: write_pairs(self.folder, step, self.data, ranks))
        newest = "there is no checkpoint"
        if self.latest is not None and self.latest.is_file():
            newest = f"the newest checkpoint is {self.latest.read_text()}"
        return TrainingError(
            f"step {step}: {error}. The update was not made; {newest}. {describe_nonfinite(ranks, self.data)}. The "
            f"step's {self.data.items} {written}.",
            agreed=error.agreed,
        )


def describe_nonfinite(ranks: Sequence[Sequence[MicroBatch]], data: Rows) -> str:
    """Names the rows of the micro-batches that were not finite, or all rows if every micro-batch was finite.

    Args:
        ranks: the step's micro-batches of every rank.
        data: the pairs that are trained on.
    """
    batches = list(itertools.chain.from_iterable(ranks))
    affected = [batch for batch in batches if not batch.finite]
    # A gradient may overflow where all losses are finite; then no micro-batch is cleared of it.
    listed = data.places((index for batch in affected or batches for index in batch.indices), _LISTED)
    if affected:
        where = f"{len(affected)} of {len(batches)} micro-batches"
        return f"Losses or log-probs were not finite in {where}: {data.items} in {listed}"
    return f"The losses of all micro-batches were finite, so any of them can be the cause: {data.items} in {listed}"


def write_pairs(folder: Path, step: int, data: Rows, ranks: Sequence[Sequence[MicroBatch]]) -> str:
    """Write a step's pairs, one JSON object each: source, line (or number of the row), rank, micro-batch (from 1),
    whether that was finite, and the row.

    Args:
        folder: the run's folder.
        data: the pairs that are trained on.
        ranks: the step's micro-batches of every rank.

    Returns:
        Where they are, or why they could not be written. A failure here must not hide the error that is reported.
    """
    path = folder / f"nonfinite_step{step:08d}.jsonl"
    try:
        rows = _read_rows(data.row_of(index) for batches in ranks for batch in batches for index in batch.indices)
        found = []
        for rank, batches in enumerate(ranks):
            for number, batch in enumerate(batches, start=1):
                for source, line in map(data.row_of, batch.indices):
                    place = {"source": source.name, "line": line, "rank": rank, "micro_batch": number}
                    found.append({**place, "finite": batch.finite, "row": rows[source, line]})
        lines = (json.dumps(one, ensure_ascii=False, default=str) + "\n" for one in found)
        path.write_text("".join(lines), encoding="utf-8")
    except (OSError, ValueError, KeyError, DataError) as error:
        return f"could not be written to {path} ({error})"
    return f"are in {path}, by rank and micro-batch"


def _read_rows(places: Iterable[tuple[Source, int]]) -> dict[tuple[Source, int], object]:
    """The values of some rows; each source is read only up to the last of them."""
    # A row may be in several micro-batches; its source is read once, from its first row on.
    wanted: dict[Source, set[int]] = {}
    for source, number in places:
        wanted.setdefault(source, set()).add(number)
    found: dict[tuple[Source, int], object] = {}
    for source, numbers in wanted.items():
        last = max(numbers)
        for number, content in source.rows():
            if number in numbers:
                found[source, number] = parse_json(content) if isinstance(content, bytes) else content
            if number >= last:
                break
    return found
