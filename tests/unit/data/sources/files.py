"""The same rows as files of every kind, for tests of readers."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq

from minimind.data.sources import Content, find_sources, parse_json

Rows = Sequence[dict[str, Any]]


def value_of(content: Content) -> Any:
    """A row's value."""
    return parse_json(content) if isinstance(content, bytes) else content


def read_words(*words: str) -> list[tuple[str, str]]:
    """Of each row of what a user gives."""
    return [
        (source.place(n), value_of(content)["prompt"]) for source in find_sources(words) for n, content in source.rows()
    ]


def json_lines(rows: Rows) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def json_array(rows: Rows) -> bytes:
    return json.dumps(rows, ensure_ascii=False).encode()


def pretty_array(rows: Rows) -> bytes:
    return json.dumps(rows, ensure_ascii=False, indent=2).encode()


def pretty_objects(rows: Rows) -> bytes:
    return "\n".join(json.dumps(row, ensure_ascii=False, indent=2) for row in rows).encode()


def separated(rows: Rows, delimiter: str = ",") -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def parquet(rows: Rows, **options: Any) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(list(rows)), buffer, row_group_size=2, **options)
    return buffer.getvalue()


def arrow(rows: Rows, *, is_file: bool = True, compression: str | None = None) -> bytes:
    buffer, table = io.BytesIO(), pa.Table.from_pylist(list(rows))
    make = pa.ipc.new_file if is_file else pa.ipc.new_stream
    with make(buffer, table.schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as writer:
        writer.write_table(table, max_chunksize=2)
    return buffer.getvalue()


def zstd(content: bytes) -> bytes:
    buffer = pa.BufferOutputStream()
    with pa.CompressedOutputStream(buffer, "zstd") as stream:
        stream.write(content)
    return buffer.getvalue().to_pybytes()


# Rows of texts alone are a table too; the others are not.
JSON: dict[str, Callable[[Rows], bytes]] = {
    "lines": json_lines,
    "array": json_array,
    "pretty array": pretty_array,
    "pretty objects": pretty_objects,
}
TABLES: dict[str, Callable[[Rows], bytes]] = {
    "parquet": parquet,
    "arrow file": arrow,
    "arrow stream": lambda rows: arrow(rows, is_file=False),
    "feather": lambda rows: arrow(rows, compression="lz4"),
}
TEXT_TABLES: dict[str, Callable[[Rows], bytes]] = {
    "csv": separated,
    "tsv": lambda rows: separated(rows, "\t"),
}
PACKED: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "zst": zstd,
    "xz": lzma.compress,
    "bz2": bz2.compress,
}
ENCODED: dict[str, Callable[[bytes], bytes]] = {
    "UTF-8 with BOM": lambda text: text.decode().encode("utf-8-sig"),
    "UTF-16": lambda text: text.decode().encode("utf-16"),
    "UTF-16 BE": lambda text: b"\xfe\xff" + text.decode().encode("utf-16-be"),
    "UTF-32": lambda text: text.decode().encode("utf-32"),
}
