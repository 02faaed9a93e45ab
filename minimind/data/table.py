"""A tokenised data set: made once, in parallel, kept on disk under a key made of content, read through memory maps.

    JSON lines -> (worker processes) checked, tokenised pairs -> one folder of flat arrays -> PairTable

The key is a hash of the file's bytes, the tokenizer with its template, the length, and this format's version; where
the file lies or what it is called does not matter.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import multiprocessing
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from minimind.data.rows import RowError, parse_row, read_lines
from minimind.data.template import ChatEncoder
from minimind.errors import DataError

_FORMAT = 1
_ROWS_PER_TASK = 256
# At about this length attention costs as much as everything else in a block; it only weighs pairs against each other.
_ATTENTION_TOKENS = 8192
# Below this many rows, starting worker processes costs more than they save.
_PARALLEL_FROM = 4 * _ROWS_PER_TASK


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreferencePair:
    """One tokenised pair.

    Attributes:
        chosen, rejected: token ids, each (length,) int32.
        chosen_mask, rejected_mask: 1 where a token counts, (length,) uint8.
        prefix: number of leading tokens that both share.
        line: where the pair stands in its file, from 1.
    """

    chosen: NDArray[np.int32]
    rejected: NDArray[np.int32]
    chosen_mask: NDArray[np.uint8]
    rejected_mask: NDArray[np.uint8]
    prefix: int
    line: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class BadRow:
    """A row that cannot be trained on, and why.

    Attributes:
        line: line number in the file, from 1.
        reason: what is wrong.
        tokenized: the row is whole but too little of it is left after truncation; it can be kept all the same.
    """

    line: int
    reason: str
    tokenized: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairTable:
    """The pairs of one file as flat arrays.

    Attributes:
        path: the JSON-lines file.
        key: hash of everything that the arrays depend on.
        tokens, mask: all rows one after the other, chosen before rejected.
        offsets: (2n + 1,) int64, where each row starts.
        prefixes, lines: (n,) int64.
        bad: rows that are not among the n, or are so although too little is left of them.
        selected: which of the n are used, in file order.
    """

    path: Path
    key: str
    tokens: NDArray[np.int32]
    mask: NDArray[np.uint8]
    offsets: NDArray[np.int64]
    prefixes: NDArray[np.int64]
    lines: NDArray[np.int64]
    bad: tuple[BadRow, ...]
    selected: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.selected)

    def __getitem__(self, index: int) -> PreferencePair:
        row = int(self.selected[index])
        start, middle, end = self.offsets[2 * row : 2 * row + 3]
        return PreferencePair(
            chosen=self.tokens[start:middle],
            rejected=self.tokens[middle:end],
            chosen_mask=self.mask[start:middle],
            rejected_mask=self.mask[middle:end],
            prefix=int(self.prefixes[row]),
            line=int(self.lines[row]),
        )

    def with_bad_rows(self, on_bad_row: str) -> PairTable:
        """The table under one of the three policies for bad rows.

        `error` raises if there is any; `skip` leaves them out; `keep` also leaves out what could not be read, but
        keeps rows that truncation left without an answer: they have a loss of ln 2 and no gradient, as in MiniMind.

        Raises:
            DataError: bad rows under `error`, or no row left.
        """
        if self.bad and on_bad_row == "error":
            shown = "\n".join(f"  line {row.line}: {row.reason}" for row in self.bad[:10])
            more = f"\n  ... and {len(self.bad) - 10} more" if len(self.bad) > 10 else ""
            raise DataError(
                f"{self.path}: {len(self.bad)} of {self.total_rows} rows cannot be trained on:\n{shown}{more}\n"
                "Mend them, raise --max_seq_len, or leave them out with --on_bad_row skip."
            )
        selected = np.arange(len(self.lines))
        if on_bad_row == "skip":
            selected = np.flatnonzero(~np.isin(self.lines, [row.line for row in self.bad]))
        if not len(selected):
            raise DataError(f"{self.path}: none of its {self.total_rows} rows can be trained on")
        return dataclasses.replace(self, selected=selected)

    @property
    def costs(self) -> NDArray[np.float64]:
        """What each pair costs to train on, about, (len,) float64: the tokens of its pack, and attention's share."""
        lengths = np.diff(self.offsets).reshape(-1, 2)[self.selected].astype(np.float64)
        prefixes = self.prefixes[self.selected].astype(np.float64)
        packed = lengths.sum(1) - prefixes
        return packed + (lengths**2).sum(1) / _ATTENTION_TOKENS

    @property
    def total_rows(self) -> int:
        return len(self.lines) + sum(not row.tokenized for row in self.bad)


def load_table(
    path: Path,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    empty_think_ratio: float,
    num_workers: int,
    cache_dir: Path,
) -> PairTable:
    """Read a preference file through the cache; tokenise it if it is not there.

    Raises:
        DataError: the file is missing or empty, or the tokenizer cannot be used. Bad rows raise nothing here.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such preference file; give one JSON object a line (--data_path)")
    encoder = ChatEncoder(tokenizer, max_length, empty_think_ratio)
    key = _key(path, encoder)
    folder = cache_dir / f"pairs-{key}"
    table = _open(path, key, folder)
    if table is None:
        _write(folder, _tokenize(path, encoder, num_workers))
        table = _open(path, key, folder)
    if table is None:
        raise DataError(f"{folder}: the tokenised data cannot be read back; see --cache_dir")
    return table


def _key(path: Path, encoder: ChatEncoder) -> str:
    digest = hashlib.sha256()
    tokenizer = encoder.tokenizer
    backend = getattr(tokenizer, "backend_tokenizer", None)
    content = backend.to_str() if backend is not None else json.dumps(tokenizer.get_vocab(), sort_keys=True)
    settings = [_FORMAT, encoder.max_length, encoder.empty_think_ratio, encoder.start, encoder.end]
    digest.update(json.dumps([settings, content, tokenizer.chat_template, tokenizer.special_tokens_map]).encode())
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()[:24]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Chunk:
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


def _work(lines: list[tuple[int, bytes]]) -> _Chunk:
    assert _worker_encoder is not None
    return _encode_lines(_worker_encoder, lines)


def _tokenize(path: Path, encoder: ChatEncoder, num_workers: int) -> Iterator[_Chunk]:
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


def _encode_lines(encoder: ChatEncoder, lines: list[tuple[int, bytes]]) -> _Chunk:
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
            bad.append(BadRow(line=number, reason=f"the chat template refuses it: {error}", tokenized=False))
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
    return _Chunk(
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


def _write(folder: Path, chunks: Iterator[_Chunk]) -> None:
    """Write the arrays beside their place, then rename: a killed run leaves nothing that looks finished."""
    partial = folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(folder, ignore_errors=True)  # one that is damaged
        partial = Path(tempfile.mkdtemp(prefix=f"{folder.name}.partial-", dir=folder.parent))
        lengths: list[int] = []
        prefixes: list[int] = []
        lines: list[int] = []
        bad: list[BadRow] = []
        with (partial / "tokens.i32").open("wb") as tokens, (partial / "mask.u8").open("wb") as mask:
            for chunk in chunks:
                chunk.tokens.tofile(tokens)
                chunk.mask.tofile(mask)
                lengths += chunk.lengths
                prefixes += chunk.prefixes
                lines += chunk.lines
                bad += chunk.bad
        np.save(partial / "offsets.npy", np.concatenate(([0], np.cumsum(lengths, dtype=np.int64))).astype(np.int64))
        np.save(partial / "prefixes.npy", np.array(prefixes, np.int64))
        np.save(partial / "lines.npy", np.array(lines, np.int64))
        meta = {"format": _FORMAT, "bad": [dataclasses.asdict(row) for row in bad]}
        (partial / "meta.json").write_text(json.dumps(meta, ensure_ascii=False), encoding="utf-8")
        try:
            os.replace(partial, folder)
        except OSError:
            # Another node on a shared disk was faster; its arrays are the same.
            if not (folder / "meta.json").is_file():
                raise
    except OSError as error:
        raise DataError(f"{folder}: the tokenised data cannot be written ({error}); see --cache_dir") from error
    finally:
        if partial != folder:
            shutil.rmtree(partial, ignore_errors=True)


def _open(path: Path, key: str, folder: Path) -> PairTable | None:
    """The table in a folder, or None if there is none or it is not whole."""
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        lines, prefixes = np.load(folder / "lines.npy"), np.load(folder / "prefixes.npy")
        table = PairTable(
            path=path,
            key=key,
            tokens=_map(folder / "tokens.i32", np.int32),
            mask=_map(folder / "mask.u8", np.uint8),
            offsets=np.load(folder / "offsets.npy"),
            prefixes=prefixes,
            lines=lines,
            bad=tuple(BadRow(**row) for row in meta["bad"]),
            selected=np.arange(len(lines)),
        )
    except (OSError, ValueError, KeyError, TypeError, EOFError):
        return None
    whole = len(table.offsets) == 2 * len(lines) + 1 and len(prefixes) == len(lines)
    return table if whole and len(table.tokens) == len(table.mask) == table.offsets[-1] else None


def _map(path: Path, dtype: type) -> NDArray[Any]:
    """A file of numbers as an array that is read when touched; an empty file cannot be mapped."""
    return np.memmap(path, dtype=dtype, mode="r") if path.stat().st_size else np.empty(0, dtype)
