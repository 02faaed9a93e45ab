"""The cache of tokenised pairs: written to disk once, then read through memory maps.

    Source -> tokenize (tokens.py) -> cache_dir/pairs-KEY/ (flat arrays) -> PairTable (table.py)

The key is a hash of the files' bytes, the tokenizer with its chat template, the length limit and the format version.
The paths of the files are not part of it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from minimind.data.encoder import build_encoder
from minimind.data.encoding import ConversationEncoder, EncodingOptions
from minimind.data.pairs import LengthLimit
from minimind.data.rows import BadRow
from minimind.data.shapes import ShapeOptions
from minimind.data.sources import Source
from minimind.data.table import PairTable
from minimind.data.tokens import Chunk, tokenize
from minimind.durable import checksum, sync_tree
from minimind.errors import DataError

# Version of the cache format and of the tokenisation; increase it when the arrays of the same file change.
_FORMAT = 6
# Arrays of the cache with one to three values for each pair, by name, with their dtypes.
_SMALL = {
    "full_lengths": np.int64,
    "prefixes": np.int64,
    "lines": np.int64,
    "prompt_lengths": np.int64,
    "least_limits": np.int64,
    "identities": np.uint64,
    "cuts": np.uint8,
}
# Counters of the cache: name -> number.
_COUNTERS = ("counts", "shapes", "unused")
_DEFAULT_OPTIONS = EncodingOptions()
_DEFAULT_SHAPES = ShapeOptions()


def load_table(
    source: Source,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    num_workers: int,
    cache_dir: Path,
    options: EncodingOptions = _DEFAULT_OPTIONS,
    shapes: ShapeOptions = _DEFAULT_SHAPES,
    cut_prompt: bool = False,
    on_progress: Callable[[], None] = lambda: None,
) -> PairTable:
    """Load the pairs of a source from the cache, or tokenise them and write the cache.

    Args:
        max_length, cut_prompt: how long a row may be, and how longer rows are cut; see `LengthLimit`.
        num_workers: largest number of worker processes.
        options: how conversations are encoded.
        shapes: how rows are read.
        on_progress: called for each tokenised chunk of rows.

    Raises:
        DataError: a file is missing, empty or damaged, the tokenizer cannot be used, or the cache cannot be written.
            Bad rows raise no error here; see `select_pairs`.
    """
    encoder = build_encoder(tokenizer, options)
    limit = LengthLimit(max_length=max_length, cut_prompt=cut_prompt)
    key = _key(source, encoder, limit, shapes)
    folder = cache_dir / f"pairs-{key}"
    table = _open(source, key, folder)
    if table is None:
        chunks = tokenize(source, encoder, limit, shapes, num_workers=num_workers)
        _write(source, folder, _with_progress(chunks, on_progress), limit)
        table = _open(source, key, folder)
    if table is None:
        raise DataError(f"{folder}: cannot read the tokenised data after writing it; try another --cache_dir")
    return table


def _with_progress(chunks: Iterator[Chunk], on_progress: Callable[[], None]) -> Iterator[Chunk]:
    for chunk in chunks:
        on_progress()
        yield chunk


def _key(source: Source, encoder: ConversationEncoder, limit: LengthLimit, shapes: ShapeOptions) -> str:
    """Hash of everything that the arrays depend on."""
    digest = hashlib.sha256()
    tokenizer = encoder.tokenizer
    # A fast tokenizer can serialise its whole pipeline (normaliser, merges, ...), a slow one only its vocabulary.
    backend = getattr(tokenizer, "backend_tokenizer", None)
    content = backend.to_str() if backend is not None else json.dumps(tokenizer.get_vocab(), sort_keys=True)
    settings = [_FORMAT, limit.max_length, limit.cut_prompt, shapes.key(), *encoder.key()]
    digest.update(json.dumps([settings, content, tokenizer.chat_template, _special(tokenizer)]).encode())
    for number, path in enumerate(source.files):
        # Other files with the same bytes one after the other are other rows.
        digest.update(f"file {number}".encode() if number else b"")
        try:
            with path.open("rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
        except OSError as error:
            raise DataError(f"{path}: cannot read the file ({error.strerror or error})") from error
    return digest.hexdigest()[:24]


def _special(tokenizer: PreTrainedTokenizerBase) -> list[Any]:
    """What a tokenizer's Python side decides about special tokens."""
    return [tokenizer.special_tokens_map, bool(getattr(tokenizer, "split_special_tokens", False))]


def _write(source: Source, folder: Path, chunks: Iterator[Chunk], limit: LengthLimit) -> None:
    """Write the arrays to a temporary folder, then rename it, so that a killed run leaves no incomplete cache."""
    partial = folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f"{folder.name}.partial-", dir=folder.parent))
        _write_arrays(partial, chunks, limit)
        sync_tree(partial)
        try:
            os.replace(partial, folder)
        except OSError:
            # The folder exists: either another run has written the same arrays meanwhile, or it is damaged.
            if _open(source, "", folder) is None:
                shutil.rmtree(folder)
                os.replace(partial, folder)
    except OSError as error:
        raise DataError(f"{folder}: cannot write the tokenised data ({error}); try another --cache_dir") from error
    finally:
        if partial != folder:
            shutil.rmtree(partial, ignore_errors=True)


def _write_arrays(folder: Path, chunks: Iterator[Chunk], limit: LengthLimit) -> None:
    lengths: list[int] = []
    small: dict[str, list[int]] = {name: [] for name in _SMALL}
    bad: list[BadRow] = []
    counters = {name: Counter[str]() for name in _COUNTERS}
    with (folder / "tokens.i32").open("wb") as tokens, (folder / "mask.u8").open("wb") as mask:
        for chunk in chunks:
            chunk.tokens.tofile(tokens)
            chunk.mask.tofile(mask)
            lengths += chunk.lengths
            for name, values in small.items():
                values += getattr(chunk, name)
            bad += chunk.bad
            for name, counter in counters.items():
                counter.update(getattr(chunk, name))
    np.save(folder / "offsets.npy", np.concatenate(([0], np.cumsum(lengths, dtype=np.int64))).astype(np.int64))
    for name, values in small.items():
        np.save(folder / f"{name}.npy", np.array(values, _SMALL[name]))
    meta = {
        "format": _FORMAT,
        "max_length": limit.max_length,
        "bad": [dataclasses.asdict(row) for row in bad],
        **counters,
        "checksums": {file.name: checksum(file) for file in sorted(folder.iterdir())},
    }
    (folder / "meta.json").write_text(json.dumps(meta, ensure_ascii=False), encoding="utf-8")


def _open(source: Source, key: str, folder: Path) -> PairTable | None:
    """The table in a cache folder, or None if it is missing or damaged."""
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        # An array with wrong values, such as a mask of zeros, would train without a word on something else.
        if any(checksum(folder / name) != value for name, value in meta["checksums"].items()):
            return None
        small = {name: np.load(folder / f"{name}.npy") for name in _SMALL}
        table = PairTable(
            source=source,
            key=key,
            tokens=_map(folder / "tokens.i32", np.int32),
            mask=_map(folder / "mask.u8", np.uint8),
            offsets=np.load(folder / "offsets.npy"),
            **small,
            max_length=meta["max_length"],
            bad=tuple(BadRow(**row) for row in meta["bad"]),
            **{name: meta[name] for name in _COUNTERS},
            selected=np.arange(len(small["lines"])),
        )
        return table if _is_consistent(table) else None
    except Exception:  # noqa: BLE001 - numpy raises many exceptions on damaged headers; the caller rebuilds the cache
        return None


def _is_consistent(table: PairTable) -> bool:
    """Whether the sizes of the arrays agree and all offsets and prefixes are in range."""
    number = len(table.lines)
    per_pair = {"full_lengths": 2, "identities": 3}
    if any(len(getattr(table, name)) != per_pair.get(name, 1) * number for name in _SMALL):
        return False
    if len(table.offsets) != 2 * number + 1:
        return False
    if not (isinstance(table.max_length, int) and all(isinstance(getattr(table, name), dict) for name in _COUNTERS)):
        return False
    lengths = np.diff(table.offsets)
    offsets_valid = table.offsets[0] == 0 and bool((lengths >= 0).all())
    prefixes_valid = bool(((table.prefixes >= 0) & (table.prefixes <= lengths.reshape(-1, 2).min(1))).all())
    return offsets_valid and prefixes_valid and len(table.tokens) == len(table.mask) == table.offsets[-1]


def _map(path: Path, dtype: type) -> NDArray[Any]:
    """A file as a memory-mapped array."""
    # mmap rejects empty files.
    return np.memmap(path, dtype=dtype, mode="r") if path.stat().st_size else np.empty(0, dtype)
