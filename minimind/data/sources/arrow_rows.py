"""Reads parquet and Arrow files: rows as Python values.

    parquet, Arrow file, Arrow stream -> record batches -> checked -> (number, column -> value)

Files may be hostile. Buffers are checked before anything reads them, since pyarrow follows offsets as they are. What a
batch or a row unpacks to is bounded before it is unpacked.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from minimind.data.sources.arrow_messages import FILE_START, check_messages
from minimind.data.sources.arrow_sizes import row_bytes
from minimind.data.sources.content import Kind
from minimind.data.sources.csv_rows import MOST_COLUMNS, BadTableError
from minimind.data.sources.json_text import ROW_BYTES, RowError, too_long
from minimind.data.sources.parquet_pages import Chunk, Storage, read_chunk
from minimind.data.sources.streams import FREE_BYTES, RATIO, OnRead, ignore

Row = dict[str, Any] | RowError
# Rows that are converted at a time, and their bytes.
_BATCH_ROWS, _BATCH_BYTES = 256, 2**22
# What a row counts at least, so that a billion empty rows in a small file are too much.
_LEAST_BYTES = 64
_FOOTER_BYTES = 2**25
# A dictionary that is larger than its page by so much has texts of other pages in it.
_GROWN_BYTES = 2**22
# What pyarrow raises about damaged files and about values that Python cannot hold.
_FAILURES = (pa.ArrowException, OSError, MemoryError, ValueError, KeyError, TypeError, OverflowError)


def read_arrow(path: Path, kind: Kind, on_read: OnRead = ignore) -> Iterator[tuple[int, Row]]:
    """Yield the number (from 1) and the values of each row.

    Null entries of objects are left out, except `content`: in a column of objects every object has every key, so a null
    there says nothing. Columns keep their nulls.

    Args:
        on_read: called for each batch of rows, with its share of the file's bytes.

    Raises:
        BadTableError: the file is damaged or incomplete, or unpacks to too much.
    """
    number = used = 0
    allowed = FREE_BYTES + RATIO * path.stat().st_size
    try:
        for batch in _batches(path, kind, on_read):
            sizes = row_bytes(batch)
            used += int(sizes.sum()) + _LEAST_BYTES * len(sizes)
            if used > allowed:
                raise BadTableError(f"it unpacks to more than {allowed >> 20} MiB; preference data do not")
            for row in _rows(batch, sizes):
                number += 1
                yield number, row
    except BadTableError:
        raise
    except _FAILURES as error:
        shown = str(error).split("\n")[0][:200]
        raise BadTableError(f"cannot be read after row {number}: {shown}") from error


def _batches(path: Path, kind: Kind, on_read: OnRead) -> Iterator[pa.RecordBatch]:
    """Checked batches of few rows."""
    if kind is Kind.PARQUET:
        yield from _parquet_batches(path, on_read)
        return
    check_messages(path, is_file=kind is Kind.ARROW_FILE)
    # Mapped, so that a file of one large batch takes no memory of this process.
    with pa.memory_map(str(path)) as source:
        # Both formats hold a stream. The file format's footer, which may say something else, is not read.
        source.seek(FILE_START if kind is Kind.ARROW_FILE else 0)
        stream, place = pa.ipc.open_stream(source), 0
        _check_columns(stream.schema)
        for batch in stream:
            on_read(source.tell() - place)
            place = source.tell()
            batch.validate(full=True)
            for start in range(0, batch.num_rows, _BATCH_ROWS):
                yield batch.slice(start, _BATCH_ROWS)


def _parquet_batches(path: Path, on_read: OnRead) -> Iterator[pa.RecordBatch]:
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(0, size - 8))
        footer = int.from_bytes(file.read(4), "little")
        if file.read() != b"PAR1":
            raise BadTableError("the file is incomplete: its end is missing")
    if footer > _FOOTER_BYTES:
        raise BadTableError(f"its footer has {footer >> 20} MiB; {_FOOTER_BYTES >> 20} MiB are the most")
    if footer > size - 12:
        raise BadTableError(f"the file is damaged: its footer would have {footer} bytes, and the file has {size}")
    with pq.ParquetFile(path, pre_buffer=False, buffer_size=2**20) as plain:
        _check_columns(plain.schema_arrow)
        columns = [plain.schema.column(index) for index in range(len(plain.schema))]
        metadata = plain.metadata
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        with path.open("rb") as file:
            chunks = {
                column.path: read_chunk(file, group.column(index)) if column.physical_type == "BYTE_ARRAY" else None
                for index, column in enumerate(columns)
            }
        for batch in _group_batches(path, number, group, chunks):
            on_read(path.stat().st_size * batch.num_rows // max(1, metadata.num_rows))
            batch.validate(full=True)
            yield batch


def _group_batches(path: Path, number: int, group: Any, chunks: dict[str, Chunk | None]) -> Iterator[pa.RecordBatch]:
    """Batches of one row group, in memory that does not grow with it.

    As dictionaries, texts that repeat are not multiplied before their size is known. But pyarrow adds each text of a
    plain page to the dictionary of all batches to come. So a column whose writer has given up its dictionary, because
    it became too large, is read plainly from there on: none of its pages refers to the dictionary again.

    Args:
        chunks: path of each column -> how its pages store texts; None if it has none.
    """
    rows = max(1, min(_BATCH_BYTES * group.num_rows // max(1, group.total_byte_size), _BATCH_ROWS))
    plainly = {name for name, chunk in chunks.items() if chunk is not None and chunk.storage is Storage.PLAIN}
    done, goes_on = 0, True
    while goes_on:
        goes_on, before = False, done
        as_dictionary = [name for name, chunk in chunks.items() if chunk is not None and name not in plainly]
        with pq.ParquetFile(path, pre_buffer=False, buffer_size=2**20, read_dictionary=as_dictionary) as file:
            for batch in file.iter_batches(rows, row_groups=[number], use_threads=False):
                # Rows that are known already, because the file was opened again.
                known = min(before, batch.num_rows)
                before -= known
                if known == batch.num_rows:
                    continue
                yield batch.slice(known)
                done += batch.num_rows - known
                if given_up := _given_up(batch, chunks, plainly):
                    plainly |= given_up
                    goes_on = True
                    break


def _given_up(batch: pa.RecordBatch, chunks: dict[str, Chunk | None], plainly: set[str]) -> set[str]:
    """Paths of columns whose dictionary has become larger than its page: they have texts of plain pages in it."""
    waiting = {
        name: chunk.dictionary_bytes + _GROWN_BYTES
        for name, chunk in chunks.items()
        if chunk is not None and chunk.storage is Storage.FALLBACK and name not in plainly
    }
    if not waiting:
        return set()
    leaves = [leaf for column in batch.columns for leaf in _leaves(column)]
    # Rows before this one will be read again, plainly. Large ones would show what dictionaries keep small.
    if len(leaves) != len(chunks) or row_bytes(batch).sum() > ROW_BYTES:
        return set()
    named = zip(chunks, leaves, strict=True)
    return {name for name, leaf in named if name in waiting and leaf.dictionary.nbytes > waiting[name]}


def _leaves(array: Any) -> Iterator[Any]:
    """The arrays without parts within an array, in the order of a parquet file's columns."""
    kind = array.type
    if isinstance(array, pa.ExtensionArray):
        yield from _leaves(array.storage)
    elif pa.types.is_struct(kind):
        for index in range(kind.num_fields):
            yield from _leaves(array.field(index))
    elif pa.types.is_map(kind):
        yield from (*_leaves(array.keys), *_leaves(array.items))
    elif pa.types.is_nested(kind):
        yield from _leaves(array.values)
    else:
        yield array


def _check_columns(schema: pa.Schema) -> None:
    if len(schema) > MOST_COLUMNS:
        raise BadTableError(f"it has {len(schema)} columns; {MOST_COLUMNS} are the most")
    if len(set(schema.names)) < len(schema):
        twice = next(name for name in schema.names if schema.names.count(name) > 1)
        raise BadTableError(f"it has the column {twice!r} twice")


def _rows(batch: pa.RecordBatch, sizes: NDArray[np.int64]) -> Iterator[Row]:
    """Each row of a batch; a row that is too large is an error of its own."""
    if sizes.sum() <= ROW_BYTES:
        yield from map(_without_nulls_in_columns, _values(batch))
        return
    for index, size in enumerate(sizes):
        if size > ROW_BYTES:
            yield too_long()
        else:
            yield from map(_without_nulls_in_columns, _values(batch.slice(index, 1)))


def _values(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    """The rows of a batch.

    Raises:
        BadTableError: Python cannot hold a value; names its column.
    """
    try:
        return batch.to_pylist(maps_as_pydicts="strict")
    except _FAILURES:
        for name, column in zip(batch.schema.names, batch.columns, strict=True):
            try:
                column.to_pylist(maps_as_pydicts="strict")
            except _FAILURES as error:
                shown = str(error).split("\n")[0][:200]
                raise BadTableError(f"its column {name!r} cannot be read ({shown}); leave it out") from error
        raise


def _without_nulls_in_columns(row: dict[str, Any]) -> dict[str, Any]:
    return {name: _without_nulls(value) for name, value in row.items()}


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(one) for key, one in value.items() if one is not None or key == "content"}
    if isinstance(value, list):
        return [_without_nulls(one) for one in value]
    return value
