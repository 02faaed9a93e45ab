"""Tokenises the rows of a source, in worker processes if there are many.

    rows (sources/) -> tasks of consecutive rows -> parse_items (shapes/) -> encode_pair (pairs.py)
                                                                          -> encode_answer (labelled.py)
                                                                          -> encode_alone (alone.py)
                    -> chunks of flat arrays, in file order

Memory does not depend on the number of rows. A row that cannot be used becomes a `BadRow` of its chunk; it does not
stop the others.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import os
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minimind.data.alone import encode_alone, encode_text
from minimind.data.encoding import ConversationEncoder, RowEncoder
from minimind.data.entries import entries_of
from minimind.data.labelled import encode_answer, others_of
from minimind.data.left_out import check_rendered, not_used
from minimind.data.pairs import EncodedPair, LengthLimit, encode_pair
from minimind.data.rows import AnswerRow, BadRow, CheckedRow, ConversationRow, TextRow
from minimind.data.shapes import DEFAULT_SHAPES, Items, ShapeOptions, parse_items
from minimind.data.sources import START, Content, Place, RowError, Source
from minimind.data.text_encoder import TextEncoder
from minimind.data.tool_arguments import fit_arguments
from minimind.data.worker_pool import run_in_order

# Names in `Chunk.counts`: rows of the source; rows of which no two answers make a pair; pairs whose tokens or mask
# differ from those of MiniMind's rule; and pairs whose messages of the role `developer` were read as system messages.
ROWS, UNPAIRED, OTHER_MASK, DEVELOPER = "rows", "unpaired", "other_mask", "developer"
# Bits of `Chunk.cuts`: turns of the prompt were left out; the end of a row was left out; no difference that counts is
# left; the pair is one of `Chunk.bad`.
PROMPT_CUT, END_CUT, LOST, WRONG = 1, 2, 4, 8
_ROWS_PER_TASK = 256
# A task of long rows has fewer, so that many tasks fit into memory.
_BYTES_PER_TASK = 2**21
# Bytes after which `on_read` is called.
_BLOCK = 2**20
# Up to this number of tasks, starting worker processes takes longer than they save.
_TASKS_OF_THIS_PROCESS = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chunk:
    """Tokenised pairs of consecutive lines: the result of one worker task. n pairs, 2n rows of tokens.

    Attributes:
        tokens, mask: all rows concatenated, chosen before rejected.
        lengths: tokens of each of the 2n rows.
        full_lengths: the same before anything was cut.
        prefixes: number of leading tokens that both rows of a pair share, n values.
        prompt_lengths, least_limits: as in `EncodedPair`, n values each.
        identities: hashes of each pair's prompt, chosen and rejected answer, 3n values; see identity.py.
        lines: number of each pair's row in the source, n values; pairs of one row follow each other.
        scores: of both halves of each pair, 2n values; NaN if not given.
        labels: n values, as in entries.py; what is no pair is the chosen half of its entry.
        cuts: what the length limit did to each pair, n values: a sum of PROMPT_CUT, END_CUT and LOST, and WRONG.
        bad: rows and pairs that cannot be trained on; those with `tokenized` are also among the n pairs.
        counts: number of rows or pairs with a property that the user is told of, by a name from this module.
        shapes: number of rows of each shape, by its name in `SHAPES`.
        unused: number of rows of everything that is not used, e.g. of a column.
        bytes_read: how much of the source's files was read, up to and including these rows; exactly up to there, if the
            source has places.
        last: number of the last row.
    """

    tokens: NDArray[np.int32]
    mask: NDArray[np.uint8]
    lengths: list[int]
    full_lengths: list[int]
    prefixes: list[int]
    prompt_lengths: list[int]
    least_limits: list[int]
    identities: list[int]
    lines: list[int]
    scores: list[float]
    labels: list[int]
    cuts: list[int]
    bad: list[BadRow]
    counts: Mapping[str, int]
    shapes: Mapping[str, int]
    unused: Mapping[str, int]
    bytes_read: int
    last: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Task:
    """Consecutive rows with their numbers, and the bytes of the source's files that were read up to them."""

    rows: list[tuple[int, Content]]
    bytes_read: int


def tokenize(
    source: Source,
    encoder: RowEncoder,
    limit: LengthLimit,
    shapes: ShapeOptions = DEFAULT_SHAPES,
    *,
    num_workers: int,
    skip: int = 0,
    start: Place = START,
    on_read: Callable[[], object] = lambda: None,
) -> Generator[Chunk]:
    """Yield the chunks of a source, in its order.

    Args:
        limit: how long a row may be, and how longer rows are cut.
        shapes: how rows are read.
        num_workers: largest number of worker processes; the number of cores is another limit. Fewer than 2, or a
            small source: this process does the work.
        skip: number of rows at the start that are left out.
        start: the place behind them, from which the rows are read if the source has places; else from the first one on.
        on_read: called for each block of about a MiB that is read of a file.

    Raises:
        DataError: a file is missing, unreadable or empty.
    """
    encode = functools.partial(_encode_rows, encoder, limit, shapes)
    tasks = _tasks(source, skip, start if source.has_places else START, on_read)
    first = list(itertools.islice(tasks, _TASKS_OF_THIS_PROCESS + 1))
    workers = min(num_workers, len(os.sched_getaffinity(0)))
    tasks = itertools.chain(first, tasks)
    if len(first) <= _TASKS_OF_THIS_PROCESS or workers < 2:
        yield from map(encode, tasks)
    else:
        yield from run_in_order(encode, tasks, workers)


def _tasks(source: Source, skip: int, start: Place, on_read: Callable[[], object]) -> Iterator[_Task]:
    """Tasks of `_ROWS_PER_TASK` rows, or of fewer that are long. A few rows at the end join the task before them, since
    answers are mismatched within a task."""
    bytes_read, told, least = start.byte, start.byte, max(2, _ROWS_PER_TASK // 16)

    def count(number: int) -> None:
        nonlocal bytes_read, told
        bytes_read += number
        if bytes_read - told >= _BLOCK:
            told = bytes_read
            on_read()

    full: list[tuple[int, Content]] = []
    rows: list[tuple[int, Content]] = []
    size = read = 0
    for number, content in itertools.islice(source.rows(count, start), 0 if start.byte else skip, None):
        rows.append((number, content))
        size += _size(content)
        if full and len(rows) == least:
            yield _Task(rows=full, bytes_read=read)
            full = []
        if len(rows) == _ROWS_PER_TASK or size >= _BYTES_PER_TASK:
            if full:
                yield _Task(rows=full, bytes_read=read)
            full, rows, size, read = rows, [], 0, bytes_read
    if full or rows:
        yield _Task(rows=[*full, *rows], bytes_read=bytes_read)


def _size(value: Any) -> int:
    """Characters or bytes of all texts in a row."""
    if isinstance(value, bytes | str):
        return len(value)
    values = value.values() if isinstance(value, dict) else value
    return sum(map(_size, values)) if isinstance(value, dict | list) else 0


def _encode_rows(encoder: RowEncoder, limit: LengthLimit, options: ShapeOptions, task: _Task) -> Chunk:
    words, read = encoder.words, _read_rows(task, options)
    # All rows of a task at once: each stage runs faster when the one before it does not run in between.
    encoder.foresee(
        (messages, number)
        for number, row in zip(read.numbers, read.rows, strict=True)
        if not row.tools and not row.template_kwargs
        for messages in row.conversations.values()
    )
    pairs: list[EncodedPair] = []
    identities, numbers, labels = (list[int]() for _ in range(3))
    scores: list[float] = []
    bad, counts, unused = read.bad, read.counts, dict[tuple[int, str], None]()
    for place, (number, row) in enumerate(zip(read.numbers, read.rows, strict=True)):
        try:
            found = _encode(read.rows, place, number, encoder, limit, options.items)
        except (RowError, RecursionError) as error:
            reason = str(error) if isinstance(error, RowError) else "nested too deeply"
            bad.append(BadRow(line=number, reason=reason, tokenized=False))
            continue
        counts[DEVELOPER] += row.has_developer
        unused.update(dict.fromkeys((number, name) for name in not_used(row, words)))
        for pair, entry in zip(found, entries_of(row, words, len(found)), strict=True):
            if pair.problem is not None:
                bad.append(BadRow(line=number, reason=pair.problem, tokenized=True))
            counts[OTHER_MASK] += pair.other_mask
            pairs.append(pair)
            numbers.append(number)
            identities += entry.identity
            scores += entry.scores
            labels.append(entry.label)
    return Chunk(
        **_arrays(pairs),
        identities=identities,
        lines=numbers,
        scores=scores,
        labels=labels,
        # Rows that could not be read and those that could not be encoded, in the order of the source.
        bad=sorted(bad, key=lambda row: row.line),
        counts=counts,
        shapes=read.shapes,
        unused=Counter(name for _, name in unused),
        bytes_read=task.bytes_read,
        last=task.rows[-1][0],
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class _ReadRows:
    """The checked rows of a task, the number of each one's row in the source, and what `Chunk` has of the others."""

    rows: list[CheckedRow]
    numbers: list[int]
    bad: list[BadRow]
    counts: Counter[str]
    shapes: Counter[str]


def _read_rows(task: _Task, options: ShapeOptions) -> _ReadRows:
    read = _ReadRows(rows=[], numbers=[], bad=[], counts=Counter(), shapes=Counter())
    for number, content in task.rows:
        read.counts[ROWS] += 1
        try:
            if isinstance(content, RowError):
                raise content
            rows = parse_items(content, options)
        except RowError as error:
            read.bad.append(BadRow(line=number, reason=str(error), tokenized=False))
            continue
        read.counts[UNPAIRED] += not rows
        read.shapes.update(dict.fromkeys(row.shape for row in rows).keys())
        read.rows.extend(rows)
        read.numbers.extend([number] * len(rows))
    return read


def _arrays(pairs: list[EncodedPair]) -> dict[str, Any]:
    """What a chunk has of its tokenised pairs."""
    halves = [half for pair in pairs for half in (pair.chosen, pair.rejected)]
    tokens = itertools.chain.from_iterable(half.tokens for half in halves)
    return {
        "tokens": np.fromiter(tokens, np.int32, sum(len(half.tokens) for half in halves)),
        "mask": np.frombuffer(b"".join(bytes(half.mask) for half in halves), np.uint8),
        "lengths": [len(half.tokens) for half in halves],
        "full_lengths": [length for pair in pairs for length in pair.lengths],
        "prefixes": [pair.prefix for pair in pairs],
        "prompt_lengths": [pair.prompt_length for pair in pairs],
        "least_limits": [pair.least_limit for pair in pairs],
        "cuts": [_cuts(pair) for pair in pairs],
    }


def _cuts(pair: EncodedPair) -> int:
    return (
        PROMPT_CUT * pair.prompt_cut + END_CUT * pair.end_cut + LOST * pair.is_lost + WRONG * (pair.problem is not None)
    )


def _encode(
    rows: Sequence[CheckedRow],
    place: int,
    number: int,
    encoder: RowEncoder,
    limit: LengthLimit,
    items: Items,
) -> list[EncodedPair]:
    """Tokenise the row at a place; `number` is that of its row in the source. A text may give several entries."""
    row = rows[place]
    if isinstance(row, TextRow):
        assert isinstance(encoder, TextEncoder)
        return encode_text(row, encoder, limit)
    assert isinstance(encoder, ConversationEncoder)
    if isinstance(row, AnswerRow):
        others = others_of(rows, place) if items is Items.MISMATCHED else None
        return [encode_answer(row, number, encoder, limit, others)]
    if isinstance(row, ConversationRow):
        return [encode_alone(row, number, encoder, limit)]
    template, given = encoder.template, encoder.given(row.tools, row.template_kwargs)
    chosen, rejected = (fit_arguments(messages, template, given) for messages in (row.chosen, row.rejected))
    row = dataclasses.replace(row, chosen=chosen, rejected=rejected)
    check_rendered(row, template, given)
    return [encode_pair(row, number, encoder, limit)]
