"""Messages about the rows of one source: wrong rows, rows that are too long, and what of the rows is not used.

    PairTable, DataConfig -> row_messages -> lines of the console

Every message gives a number, and names the flag that decides.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from minimind.config import DataConfig
from minimind.data.reasons import described
from minimind.data.scores import score_gaps, scored_apart
from minimind.data.selection import (
    CUT_PROMPT,
    KEEP,
    SKIP,
    LengthSummary,
    summarize_lengths,
)
from minimind.data.shapes import PLAIN, shape_named
from minimind.data.shapes.dataset_info import dataset_info
from minimind.data.table import PairTable
from minimind.data.tokens import DEVELOPER, UNPAIRED

# Reasons that are listed, and columns and keys that are named; the rest is counted.
_LISTED, _NAMED = 4, 12


def row_messages(table: PairTable, config: DataConfig) -> Iterator[str]:
    """What the user should know about the rows of a file, one line each; nothing about a file without peculiarities.

    Args:
        table: the pairs that the run uses, as `select_pairs` gives them under the same flags.
    """
    if table.source.note:
        yield table.source.note
    if (entry := dataset_info(table.source.files, config)) is not None:
        yield f"columns and roles are named by {entry.origin}"
    yield from _shapes(table)
    yield from _pairs_of_rows(table, config)
    if config.filter_score_gap is not None:
        yield _filtered(table, config.filter_score_gap)
    elif worse := int((score_gaps(table) < 0).sum()):
        yield f"in {_pairs(worse)} the rejected answer has the higher score (--filter_score_gap 0 leaves these out)"
    if table.bad:
        yield _wrong_rows(table, config)
    summary = summarize_lengths(table)
    if summary.too_long:
        yield _long_rows(summary, config, table.items)
    if table.unused:
        yield _unused(table)
    if number := table.counts.get(DEVELOPER):
        yield f"in {_rows(number)} a message of the role developer is read as the system message"


def _shapes(table: PairTable) -> Iterator[str]:
    """The rows of each shape, where there are others than MiniMind's."""
    if table.shapes.keys() <= PLAIN:
        return
    for name, number in table.shapes.items():
        shape = shape_named(name)
        yield f"{_rows(number)}: {shape.title}{f': {shape.note}' if shape.note else ''}"


def _pairs_of_rows(table: PairTable, config: DataConfig) -> Iterator[str]:
    """Rows of several answers that give no pair or more than one."""
    if unpaired := table.counts.get(UNPAIRED):
        yield f"{_rows(unpaired)} without a pair: a tie, or scores closer than --score_gap {config.score_gap:g}"
    # Pairs of one row follow each other.
    rows = 1 + int(np.count_nonzero(np.diff(table.lines))) if len(table.lines) else 0
    if len(table.lines) > rows and table.is_labelled:
        yield f"{_rows(rows)} give {len(table.lines)} answers: a pair is taken as a desirable and an undesirable one"
    elif len(table.lines) > rows and table.items == "texts":
        yield f"{_rows(rows)} make {len(table.lines)} of at most {table.max_length} tokens (--on_long_row split)"
    elif len(table.lines) > rows:
        yield f"{_rows(rows)} make {_pairs(len(table.lines))} (--pairing {config.pairing})"


def _filtered(table: PairTable, gap: float) -> str:
    left_out, unscored = ~scored_apart(table, gap), np.isnan(score_gaps(table))
    return (
        f"pairs left out by --filter_score_gap {gap:g}: {_share(int(left_out.sum()), len(left_out))}, of these "
        f"{int(unscored.sum())} without scores"
    )


def _wrong_rows(table: PairTable, config: DataConfig) -> str:
    kept = sum(row.tokenized for row in table.bad) if config.on_bad_row == KEEP else 0
    but = f" except {kept} that MiniMind trains on" if kept else ""
    return (
        f"{len(table.bad)} of {_rows(table.total_rows)} are wrong and left out{but} (--on_bad_row "
        f"{config.on_bad_row}): {'; '.join(described(table.source, table.bad, _LISTED))}"
    )


def _long_rows(summary: LengthSummary, config: DataConfig, items: str) -> str:
    parts = [
        f"{items} longer than --max_seq_len {summary.limit}: {_share(summary.too_long, summary.pairs)}",
        *_done_with(summary, config.on_long_row),
        summary.advice,
    ]
    return f"{'; '.join(parts)} (--on_long_row {config.on_long_row})"


def _done_with(summary: LengthSummary, on_long_row: str) -> Iterator[str]:
    """What happened to the pairs that are too long."""
    if on_long_row == SKIP:
        yield "all of them left out"
        return
    if on_long_row == CUT_PROMPT:
        yield f"without the oldest turns of their prompt: {summary.prompt_cut}"
    if summary.end_cut:
        yield f"cut at the end: {summary.end_cut}"
    if summary.lost:
        # Where only one half has lost all tokens that count, MiniMind trains on the other half alone.
        fate = "kept as MiniMind keeps them" if on_long_row == KEEP else "left out"
        cause = "no token that counts"
        if summary.items == "pairs":
            cause = "no difference that counts, or no token that counts in one half"
        yield f"of these {fate}, since they have {cause}: {_share(summary.lost, summary.pairs)}"


def _unused(table: PairTable) -> str:
    """Columns, keys and variables that nothing reads, those of most rows first."""
    ordered = sorted(table.unused.items(), key=lambda item: -item[1])
    named = [f"{name} ({_rows(number)})" for name, number in ordered[:_NAMED]]
    more = f" and {len(ordered) - _NAMED} more" if len(ordered) > _NAMED else ""
    return f"not used: {', '.join(named)}{more}"


def _rows(number: int) -> str:
    return f"{number} row{'' if number == 1 else 's'}"


def _pairs(number: int) -> str:
    return f"{number} pair{'' if number == 1 else 's'}"


def _share(part: int, whole: int) -> str:
    """A part with its share in percent; never 0.0 or 100.0 % for a part that is neither."""
    share = 100 * part / whole
    if 0 < part < whole:
        share = min(max(share, 0.1), 99.9)
    return f"{part} of {whole} ({share:.1f} %)"
