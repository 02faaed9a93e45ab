"""Tokenises the rows of a source, in worker processes if there are many.

    rows (sources/) -> parse_rows (shapes/) -> encode_pair (pairs.py) -> chunks of flat arrays, in file order

A row that cannot be used becomes a `BadRow` of its chunk; it does not stop the others.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import multiprocessing
import os
import signal
import threading
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minimind.data.encoding import ConversationEncoder
from minimind.data.identity import identity_of
from minimind.data.left_out import check_rendered, not_used, words_of
from minimind.data.pairs import EncodedPair, LengthLimit, encode_pair
from minimind.data.rows import BadRow, PreferenceRow
from minimind.data.shapes import ShapeOptions, parse_rows
from minimind.data.sources import Content, RowError, Source
from minimind.data.tool_arguments import fit_arguments

# Names in `Chunk.counts`: rows of the source; pairs whose tokens or mask differ from those of MiniMind's rule; and
# pairs whose messages of the role `developer` were read as system messages.
ROWS, OTHER_MASK, DEVELOPER = "rows", "other_mask", "developer"
# Bits of `Chunk.cuts`: turns of the prompt were left out; the end of a row was left out; no difference that counts is
# left; the pair is one of `Chunk.bad`.
PROMPT_CUT, END_CUT, LOST, WRONG = 1, 2, 4, 8
_ROWS_PER_TASK = 256
# A task of long rows has fewer, so that a few tasks fit into memory.
_BYTES_PER_TASK = 2**23
_DEFAULT_SHAPES = ShapeOptions()
# Below this number of rows, starting worker processes takes longer than they save.
_MIN_ROWS_FOR_WORKERS = 4 * _ROWS_PER_TASK


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
        cuts: what the length limit did to each pair, n values: a sum of PROMPT_CUT, END_CUT and LOST, and WRONG.
        bad: rows and pairs that cannot be trained on; those with `tokenized` are also among the n pairs.
        counts: number of rows or pairs with a property that the user is told of, by a name from this module.
        shapes: number of rows of each shape, by its name in `SHAPES`.
        unused: number of rows of everything that is not used, e.g. of a column.
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
    cuts: list[int]
    bad: list[BadRow]
    counts: Mapping[str, int]
    shapes: Mapping[str, int]
    unused: Mapping[str, int]


# Set once per worker process: sending the tokenizer with every task would cost more than the task.
_worker: tuple[ConversationEncoder, LengthLimit, ShapeOptions] | None = None


def _start_worker(encoder: ConversationEncoder, limit: LengthLimit, shapes: ShapeOptions) -> None:
    global _worker
    _worker = encoder, limit, shapes
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    """Exit when the parent process dies: after a kill, a worker of the pool would wait forever for its next task."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _run_task(rows: list[tuple[int, Content]]) -> Chunk:
    assert _worker is not None
    return _encode_rows(*_worker, rows)


def tokenize(
    source: Source,
    encoder: ConversationEncoder,
    limit: LengthLimit,
    shapes: ShapeOptions = _DEFAULT_SHAPES,
    *,
    num_workers: int,
) -> Iterator[Chunk]:
    """Yield the chunks of a source, in its order.

    Args:
        limit: how long a row may be, and how longer rows are cut.
        shapes: how rows are read.
        num_workers: largest number of worker processes; the number of cores is another limit. Fewer than 2, or a
            small source: this process does the work.

    Raises:
        DataError: a file is missing, unreadable or empty.
    """
    batches = _batched(source.rows(), _ROWS_PER_TASK)
    first = list(itertools.islice(batches, _MIN_ROWS_FOR_WORKERS // _ROWS_PER_TASK))
    workers = min(num_workers, len(os.sched_getaffinity(0)))
    small = sum(map(len, first)) < _MIN_ROWS_FOR_WORKERS or workers < 2
    pool = None if small else _start_pool(workers, encoder, limit, shapes)
    if pool is None:
        for batch in itertools.chain(first, batches):
            yield _encode_rows(encoder, limit, shapes, batch)
        return
    with pool:
        with _without_interrupts():
            chunks = pool.map(_run_task, itertools.chain(first, batches))
        yield from chunks


def _start_pool(workers: int, *given: Any) -> ProcessPoolExecutor | None:
    """Worker processes; None, after a warning, if the system has no room for what they need to talk to each other."""
    # Not fork: this process may already have threads (torch, gloo), and a forked child inherits their locks as held.
    context = multiprocessing.get_context("spawn")
    try:
        return ProcessPoolExecutor(workers, context, initializer=_start_worker, initargs=given)
    except OSError as error:
        # Python keeps semaphores in /dev/shm.
        warnings.warn(f"one process tokenises, which is slower: /dev/shm cannot be used ({error})", stacklevel=2)
        return None


@contextlib.contextmanager
def _without_interrupts() -> Iterator[None]:
    """Worker processes that start in the block do not get SIGINT: at a Ctrl-C each would print a traceback.

    They end with this process, in which another thread gets the signal.
    """
    # A mask is inherited.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _batched(rows: Iterable[tuple[int, Content]], size: int) -> Iterator[list[tuple[int, Content]]]:
    """Lists of `size` rows, or of fewer that are long."""
    batch: list[tuple[int, Content]] = []
    taken = 0
    for number, content in rows:
        batch.append((number, content))
        taken += len(content) if isinstance(content, bytes) else 0
        if len(batch) == size or taken >= _BYTES_PER_TASK:
            yield batch
            batch, taken = [], 0
    if batch:
        yield batch


def _encode_rows(
    encoder: ConversationEncoder, limit: LengthLimit, options: ShapeOptions, contents: list[tuple[int, Content]]
) -> Chunk:
    """Parse and tokenise rows, given with their numbers."""
    words = words_of(encoder.template)
    pairs: list[EncodedPair] = []
    identities: list[int] = []
    numbers: list[int] = []
    bad: list[BadRow] = []
    counts, shapes, unused = Counter[str](), Counter[str](), Counter[str]()
    for number, content in contents:
        counts[ROWS] += 1
        try:
            if isinstance(content, RowError):
                raise content
            rows = parse_rows(content, options)
        except RowError as error:
            bad.append(BadRow(line=number, reason=str(error), tokenized=False))
            continue
        shapes.update({row.shape for row in rows})
        seen = set[str]()
        for row in rows:
            try:
                pair = _encode(row, number, encoder, limit)
            except (RowError, RecursionError) as error:
                reason = str(error) if isinstance(error, RowError) else "nested too deeply"
                bad.append(BadRow(line=number, reason=reason, tokenized=False))
                continue
            if pair.problem is not None:
                bad.append(BadRow(line=number, reason=pair.problem, tokenized=True))
            counts[OTHER_MASK] += pair.other_mask
            counts[DEVELOPER] += row.has_developer
            seen.update(not_used(row, words))
            pairs.append(pair)
            identities += identity_of(row, words)
            numbers.append(number)
        unused.update(seen)
    return Chunk(
        **_arrays(pairs), identities=identities, lines=numbers, bad=bad, counts=counts, shapes=shapes, unused=unused
    )


def _arrays(pairs: list[EncodedPair]) -> dict[str, Any]:
    """What a chunk has of its tokenised pairs."""
    halves = [half for pair in pairs for half in (pair.chosen, pair.rejected)]
    return {
        "tokens": np.array([token for half in halves for token in half.tokens], np.int32),
        "mask": np.array([value for half in halves for value in half.mask], np.uint8),
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


def _encode(row: PreferenceRow, number: int, encoder: ConversationEncoder, limit: LengthLimit) -> EncodedPair:
    template, given = encoder.template, encoder.given(row.tools, row.template_kwargs)
    chosen, rejected = (fit_arguments(messages, template, given) for messages in (row.chosen, row.rejected))
    row = dataclasses.replace(row, chosen=chosen, rejected=rejected)
    check_rendered(row, template, given)
    return encode_pair(row, number, encoder, limit)
