"""Preference rows -> tokens, in worker processes for files that are worth it.

JSON lines -> (workers) checked, tokenised, masked -> Chunks of flat arrays, in file order
"""

from __future__ import annotations

import dataclasses
import itertools
import multiprocessing
import os
import textwrap
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from minimind.data.rows import BadRow
from minimind.data.shapes import parse_row
from minimind.data.sources import RowError, read_lines
from minimind.data.template import ChatEncoder

_ROWS_PER_TASK = 256
# Below this many rows, starting worker processes costs more than they save.
_PARALLEL_FROM = 4 * _ROWS_PER_TASK


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chunk:
    """Some rows, tokenised: what a worker sends back."""

    tokens: NDArray[np.int32]
    mask: NDArray[np.uint8]
    lengths: list[int]
    prefixes: list[int]
    lines: list[int]
    bad: list[BadRow]


_worker_encoder: ChatEncoder | None = None


def _start_worker(encoder: ChatEncoder) -> None:
    global _worker_encoder
    _worker_encoder = encoder
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this worker when the rank it works for is killed; the pool itself would leave it waiting for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _work(lines: list[tuple[int, bytes]]) -> Chunk:
    assert _worker_encoder is not None
    return _encode_lines(_worker_encoder, lines)


def tokenize(path: Path, encoder: ChatEncoder, num_workers: int) -> Iterator[Chunk]:
    """Chunks of a file's rows in their order, by at most `num_workers` processes and one per core."""
    batches = _batched(read_lines(path), _ROWS_PER_TASK)
    first = list(itertools.islice(batches, _PARALLEL_FROM // _ROWS_PER_TASK))
    workers = min(num_workers, len(os.sched_getaffinity(0)))
    if sum(map(len, first)) < _PARALLEL_FROM or workers < 2:
        for batch in itertools.chain(first, batches):
            yield _encode_lines(encoder, batch)
        return
    # spawn: this process may already have threads (torch, gloo) that a fork would copy in mid-step.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=_start_worker, initargs=(encoder,)) as pool:
        yield from pool.map(_work, itertools.chain(first, batches))


def _batched(items: Iterable[tuple[int, bytes]], size: int) -> Iterator[list[tuple[int, bytes]]]:
    iterator = iter(items)
    while batch := list(itertools.islice(iterator, size)):
        yield batch


def _encode_lines(encoder: ChatEncoder, lines: list[tuple[int, bytes]]) -> Chunk:
    tokens: list[int] = []
    mask: list[int] = []
    lengths: list[int] = []
    prefixes: list[int] = []
    numbers: list[int] = []
    bad: list[BadRow] = []
    for number, line in lines:
        try:
            row = parse_row(line)
            chosen, rejected = encoder.encode(row.chosen, number), encoder.encode(row.rejected, number)
        except RowError as error:
            bad.append(BadRow(line=number, reason=str(error), tokenized=False))
            continue
        except Exception as error:  # noqa: BLE001 - the template is a program; what it raises is the row's fault
            reason = f"the chat template refuses it: {textwrap.shorten(str(error), 200)}"
            bad.append(BadRow(line=number, reason=reason, tokenized=False))
            continue
        empty = [half for half, r in (("chosen", chosen), ("rejected", rejected)) if not any(r.mask[1:])]
        if empty or chosen.tokens == rejected.tokens:
            what = f"the {' and the '.join(empty)} answer" if empty else "the answers' difference"
            reason = f"nothing is left of {what} within {encoder.max_length} tokens (--max_seq_len)"
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
    )


def _common_prefix(one: list[int], other: list[int]) -> int:
    shorter = min(len(one), len(other))
    differing = np.flatnonzero(np.array(one[:shorter]) != np.array(other[:shorter]))
    return int(differing[0]) if len(differing) else shorter
