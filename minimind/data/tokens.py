"""Tokenises a preference file, in worker processes if the file is large.

    lines (sources.py) -> parse_row (shapes.py) -> encode (encoder.py) -> truncated -> chunks of flat arrays, in order

A row that cannot be used becomes a `BadRow` of its chunk; it does not stop the others.
"""

from __future__ import annotations

import dataclasses
import itertools
import multiprocessing
import os
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from minimind.data.encoding import ConversationEncoder, TokenizedRow
from minimind.data.rows import BadRow
from minimind.data.shapes import parse_row
from minimind.data.sources import RowError, read_lines

# Name in `Chunk.counts`: rows whose tokens or mask differ from those of MiniMind's rule.
OTHER_MASK = "other_mask"
_ROWS_PER_TASK = 256
# Below this number of rows, starting worker processes takes longer than they save.
_MIN_ROWS_FOR_WORKERS = 4 * _ROWS_PER_TASK


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chunk:
    """Tokenised rows of consecutive lines: the result of one worker task. n pairs, 2n rows.

    Attributes:
        tokens, mask: all rows concatenated, chosen before rejected.
        lengths: tokens of each of the 2n rows.
        prefixes: number of leading tokens that both rows of a pair share, n values.
        lines: line number of each pair in the file, n values.
        bad: rows that cannot be trained on; those with `tokenized` are also among the n pairs.
        counts: number of rows with a property that the user is told of, by a name from this module.
    """

    tokens: NDArray[np.int32]
    mask: NDArray[np.uint8]
    lengths: list[int]
    prefixes: list[int]
    lines: list[int]
    bad: list[BadRow]
    counts: Mapping[str, int]


# Set once per worker process: sending the tokenizer with every task would cost more than the task.
_worker: tuple[ConversationEncoder, int] | None = None


def _start_worker(encoder: ConversationEncoder, max_length: int) -> None:
    global _worker
    _worker = encoder, max_length
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    """Exit when the parent process dies: after a kill, a worker of the pool would wait forever for its next task."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _run_task(lines: list[tuple[int, bytes]]) -> Chunk:
    assert _worker is not None
    return _encode_lines(*_worker, lines)


def tokenize(path: Path, encoder: ConversationEncoder, *, max_length: int, num_workers: int) -> Iterator[Chunk]:
    """Yield the chunks of a file, in file order.

    Args:
        max_length: tokens per row; longer rows are truncated at the end.
        num_workers: largest number of worker processes; the number of cores is another limit. Fewer than 2, or a
            small file: this process does the work.

    Raises:
        DataError: the file is missing, unreadable or empty.
    """
    batches = _batched(read_lines(path), _ROWS_PER_TASK)
    first = list(itertools.islice(batches, _MIN_ROWS_FOR_WORKERS // _ROWS_PER_TASK))
    workers = min(num_workers, len(os.sched_getaffinity(0)))
    if sum(map(len, first)) < _MIN_ROWS_FOR_WORKERS or workers < 2:
        for batch in itertools.chain(first, batches):
            yield _encode_lines(encoder, max_length, batch)
        return
    # Not fork: this process may already have threads (torch, gloo), and a forked child inherits their locks as held.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=_start_worker, initargs=(encoder, max_length)) as pool:
        yield from pool.map(_run_task, itertools.chain(first, batches))


def _batched(items: Iterable[tuple[int, bytes]], size: int) -> Iterator[list[tuple[int, bytes]]]:
    iterator = iter(items)
    while batch := list(itertools.islice(iterator, size)):
        yield batch


def _encode_lines(encoder: ConversationEncoder, max_length: int, lines: list[tuple[int, bytes]]) -> Chunk:
    """Parse and tokenise lines, given with their numbers."""
    tokens: list[int] = []
    mask: list[int] = []
    lengths: list[int] = []
    prefixes: list[int] = []
    numbers: list[int] = []
    bad: list[BadRow] = []
    counts: Counter[str] = Counter()
    for number, line in lines:
        try:
            row = parse_row(line)
            halves = [
                encoder.encode_compared(messages, number, tools=row.tools, template_kwargs=row.template_kwargs)
                for messages in (row.chosen, row.rejected)
            ]
        except RowError as error:
            bad.append(BadRow(line=number, reason=str(error), tokenized=False))
            continue
        counts[OTHER_MASK] += any(half.differs for half in halves)
        chosen, rejected = (_truncated(half.row, max_length) for half in halves)
        # The first token of a row is never a target, so a mask on it alone leaves nothing to train on.
        empty = [half for half, r in (("chosen", chosen), ("rejected", rejected)) if not any(r.mask[1:])]
        if empty or chosen.tokens == rejected.tokens:
            lost = f"the {' and the '.join(empty)} answer" if empty else "the difference between the answers"
            reason = f"truncation to {max_length} tokens (--max_seq_len) removes {lost}"
            bad.append(BadRow(line=number, reason=reason, tokenized=True))
        prefixes.append(_common_prefix(chosen.tokens, rejected.tokens))
        numbers.append(number)
        for half in (chosen, rejected):
            tokens += half.tokens
            mask += half.mask
            lengths.append(len(half.tokens))
    return Chunk(
        tokens=np.array(tokens, np.int32),
        mask=np.array(mask, np.uint8),
        lengths=lengths,
        prefixes=prefixes,
        lines=numbers,
        bad=bad,
        counts=counts,
    )


def _truncated(row: TokenizedRow, length: int) -> TokenizedRow:
    return TokenizedRow(row.tokens[:length], row.mask[:length])


def _common_prefix(one: list[int], other: list[int]) -> int:
    shorter = min(len(one), len(other))
    differing = np.flatnonzero(np.array(one[:shorter]) != np.array(other[:shorter]))
    return int(differing[0]) if len(differing) else shorter
