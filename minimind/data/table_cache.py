"""The cache of tokenised pairs: written to disk once, then read through memory maps.

    Source -> tokenize (tokens.py) -> build_table (table_build.py) -> cache_dir/pairs-KEY/ (flat arrays) -> PairTable

The key is a hash of the files' bytes, the tokenizer with its chat template, the length limit and the format version.
The paths of the files are not part of it.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from minimind.data.encoder import build_encoder
from minimind.data.encoding import EncodingOptions, RowEncoder
from minimind.data.pairs import LengthLimit
from minimind.data.shapes import DEFAULT_SHAPES, ShapeOptions
from minimind.data.sources import Source
from minimind.data.table import PairTable
from minimind.data.table_build import SILENT, TokenisingListener, build_table
from minimind.data.table_files import read_table
from minimind.data.tokens import tokenize
from minimind.errors import DataError

# Version of the cache format and of the tokenisation; increase it when the arrays of the same file change.
_FORMAT = 11
_DEFAULT_OPTIONS = EncodingOptions()


def load_table(
    source: Source,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    num_workers: int,
    cache_dir: Path,
    options: EncodingOptions = _DEFAULT_OPTIONS,
    shapes: ShapeOptions = DEFAULT_SHAPES,
    cut_prompt: bool = False,
    long_text: str = "",
    listener: TokenisingListener = SILENT,
    known: str | None = None,
) -> PairTable:
    """Load the pairs of a source from the cache, or tokenise them and write the cache.

    Args:
        max_length, cut_prompt, long_text: how long a row may be, and how longer rows are cut; see `LengthLimit`.
        num_workers, listener: largest number of worker processes; is told of progress.
        options, shapes: how conversations are encoded, and how rows are read.
        known: key of the table, if another process of this machine has just loaded it: neither the source is hashed
            nor the table compared with its checksums again.

    Raises:
        DataError: a file is missing, empty or damaged, the tokenizer cannot be used, or the cache cannot be written.
            Bad rows raise no error here; see `select_pairs`.
    """
    if known is not None:
        folder = cache_dir / f"pairs-{known}"
        if (table := read_table(folder, source, known, listener.on_work, checked=True)) is not None:
            return table
    limit = LengthLimit(max_length=max_length, cut_prompt=cut_prompt, long_text=long_text)
    encoder = build_encoder(tokenizer, options)
    key = _key(source, encoder, limit, shapes, listener.on_work)
    folder = cache_dir / f"pairs-{key}"
    read = functools.partial(read_table, folder, source, key, listener.on_work)
    if (table := read()) is None:
        chunks = functools.partial(
            tokenize, source, encoder, limit, shapes, num_workers=num_workers, on_read=listener.on_work
        )
        try:
            build_table(folder, source, chunks, read, max_length=max_length, listener=listener)
        except (OSError, BrokenProcessPool) as error:
            # Without locks, another process may have written the table and removed what this one was writing.
            if (table := read()) is None:
                raise _failure(error, source, folder) from error
        table = table or read()
    if table is None:
        raise DataError(f"{folder}: cannot read the tokenised data after writing it; try another --cache_dir")
    return table


def _failure(error: OSError | BrokenProcessPool, source: Source, folder: Path) -> DataError:
    if isinstance(error, OSError):
        return DataError(f"{folder}: cannot write the tokenised data ({error}); try another --cache_dir")
    return DataError(
        f"{source.name}: a tokenising process died, perhaps for lack of memory; the next start goes on where this one "
        "was (--num_workers sets the number of processes)"
    )


def _key(
    source: Source,
    encoder: RowEncoder,
    limit: LengthLimit,
    shapes: ShapeOptions,
    on_block: Callable[[], object],
) -> str:
    """Hash of everything that the arrays depend on."""
    digest = hashlib.sha256()
    settings = [_FORMAT, limit.max_length, limit.cut_prompt, shapes.key(), *encoder.key()]
    settings += [limit.long_text] if limit.long_text else []
    digest.update(json.dumps([settings, *_content(encoder.tokenizer)]).encode())
    for number, path in enumerate(source.files):
        # Other files with the same bytes one after the other are other rows.
        digest.update(f"file {number}".encode() if number else b"")
        try:
            with path.open("rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
                    on_block()
        except OSError as error:
            raise DataError(f"{path}: cannot read the file ({error.strerror or error})") from error
    return digest.hexdigest()[:24]


def encoder_key(encoder: RowEncoder) -> str:
    """Hash of what tokens depend on besides the rows and their cutting."""
    return hashlib.sha256(json.dumps([_FORMAT, encoder.key(), *_content(encoder.tokenizer)]).encode()).hexdigest()


def _content(tokenizer: PreTrainedTokenizerBase) -> list[Any]:
    """What tokens depend on in a tokenizer: its pipeline, its template, and what its Python side decides."""
    # A fast tokenizer can serialise its whole pipeline (normaliser, merges, ...), a slow one only its vocabulary.
    backend = getattr(tokenizer, "backend_tokenizer", None)
    content = backend.to_str() if backend is not None else json.dumps(tokenizer.get_vocab(), sort_keys=True)
    special = [tokenizer.special_tokens_map, bool(getattr(tokenizer, "split_special_tokens", False))]
    return [content, tokenizer.chat_template, special]
