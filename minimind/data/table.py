"""A tokenised data set: made once, in parallel, kept on disk under a key made of content, read through memory maps.

    JSON lines -> (worker processes) checked, tokenised pairs -> one folder of flat arrays -> PairTable

The key is a hash of the file's bytes, the tokenizer with its template, the length, and this format's version; where
the file lies or what it is called does not matter.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from minimind.data.rows import BadRow
from minimind.data.template import ChatEncoder
from minimind.data.tokens import Chunk, tokenize
from minimind.errors import DataError

_FORMAT = 1
# At about this length attention costs as much as everything else in a block; it only weighs pairs against each other.
_ATTENTION_TOKENS = 8192


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
        return self.packed_tokens + (lengths**2).sum(1) / _ATTENTION_TOKENS

    @property
    def packed_tokens(self) -> NDArray[np.int64]:
        """How long each pair's part of a pack is, (len,) int64: what the rows share stands there once, and their last
        tokens not at all."""
        inputs = np.diff(self.offsets).reshape(-1, 2)[self.selected] - 1
        return inputs.sum(1) - np.minimum(self.prefixes[self.selected], inputs.min(1))

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
    on_progress: Callable[[], None] = lambda: None,
) -> PairTable:
    """Read a preference file through the cache; tokenise it if it is not there, with a call of `on_progress` now and
    then.

    Raises:
        DataError: the file is missing or empty, or the tokenizer cannot be used. Bad rows raise nothing here.
    """
    if not path.is_file():
        what = "is a folder, not a file" if path.is_dir() else "no such preference file"
        raise DataError(f"{path}: {what}; give one JSON object a line (--data_path)")
    encoder = ChatEncoder(tokenizer, max_length, empty_think_ratio)
    key = _key(path, encoder)
    folder = cache_dir / f"pairs-{key}"
    table = _open(path, key, folder)
    if table is None:
        _write(folder, _reported(tokenize(path, encoder, num_workers), on_progress))
        table = _open(path, key, folder)
    if table is None:
        raise DataError(f"{folder}: the tokenised data cannot be read back; see --cache_dir")
    return table


def _reported(chunks: Iterator[Chunk], on_progress: Callable[[], None]) -> Iterator[Chunk]:
    for chunk in chunks:
        on_progress()
        yield chunk


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


def _write(folder: Path, chunks: Iterator[Chunk]) -> None:
    """Write the arrays beside their place, then rename: a killed run leaves nothing that looks finished."""
    partial = folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
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
            # Something is there: another run was faster, with the same arrays, or a damaged one is in the way.
            if _open(Path(), "", folder) is None:
                shutil.rmtree(folder)
                os.replace(partial, folder)
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
        return table if _is_whole(table) else None
    except Exception:  # noqa: BLE001 - damaged headers make numpy raise almost anything; the cache is made again
        return None


def _is_whole(table: PairTable) -> bool:
    """Whether a table's arrays fit each other, so that no pair can reach outside of them."""
    if len(table.offsets) != 2 * len(table.lines) + 1 or len(table.prefixes) != len(table.lines):
        return False
    lengths = np.diff(table.offsets)
    in_order = table.offsets[0] == 0 and bool((lengths >= 0).all())
    shared = bool(((table.prefixes >= 0) & (table.prefixes <= lengths.reshape(-1, 2).min(1))).all())
    return in_order and shared and len(table.tokens) == len(table.mask) == table.offsets[-1]


def _map(path: Path, dtype: type) -> NDArray[Any]:
    """A file of numbers as an array that is read when touched; an empty file cannot be mapped."""
    return np.memmap(path, dtype=dtype, mode="r") if path.stat().st_size else np.empty(0, dtype)
