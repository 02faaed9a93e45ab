"""Page headers of parquet files: how texts are stored, damage, and chunks whose writer has given up its dictionary."""

from __future__ import annotations

import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from minimind.data.sources.arrow_rows import read_arrow
from minimind.data.sources.content import Kind
from minimind.data.sources.csv_rows import BadTableError
from minimind.data.sources.parquet_pages import Chunk, Storage, read_chunk

SMALL = {"data_page_size": 2**10, "write_batch_size": 8, "compression": "none"}


def written(texts, **options) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table({"a": texts}), buffer, **options)
    return buffer.getvalue()


def chunk_of(content: bytes, index: int = 0) -> Chunk:
    file = io.BytesIO(content)
    return read_chunk(file, pq.ParquetFile(file).metadata.row_group(0).column(index))


@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize(
    ("options", "storage"),
    [
        ({"use_dictionary": False}, Storage.PLAIN),
        ({}, Storage.DICTIONARY),
        ({"dictionary_pagesize_limit": 2**11}, Storage.FALLBACK),
        ({"use_dictionary": False, "column_encoding": {"a": "DELTA_LENGTH_BYTE_ARRAY"}}, Storage.PLAIN),
        ({"use_dictionary": False, "column_encoding": {"a": "DELTA_BYTE_ARRAY"}}, Storage.OTHER),
    ],
)
def test_the_storage_of_texts_is_known(options, storage, version):
    texts = [f"{index:050}" for index in range(300)]
    chunk = chunk_of(written(texts, data_page_version=version, **SMALL, **options))
    assert chunk.storage is storage
    # A dictionary page has four bytes for the length of each text.
    size = 300 * 54 if storage is Storage.DICTIONARY else 2**11 if storage is Storage.FALLBACK else 0
    assert chunk.dictionary_bytes == pytest.approx(size, rel=0.5)


def test_a_long_header_is_read():
    """Its statistics hold a text of 100 KiB twice."""
    texts = ["x" * 100_000, "y"]
    assert chunk_of(written(texts, use_dictionary=False, write_statistics=True)).storage is Storage.PLAIN


@pytest.mark.parametrize("damage", [b"\xff" * 40, b"\x00" * 40])
def test_a_damaged_header_is_an_error(damage):
    content = written(["a", "b"], use_dictionary=False)
    with pytest.raises(BadTableError, match="the file is damaged"):
        chunk_of(content[:4] + damage + content[44:])


@pytest.mark.parametrize(
    ("field", "damage"),
    [
        (b"\x2c", b"\x25"),  # a number in place of the structure of a data page
        (b"\x15\x00", b"\x1c\x00"),  # a structure in place of the page's type
    ],
)
def test_a_field_of_another_type_is_an_error(field, damage):
    content = written(["a", "b"], use_dictionary=False)
    at = content.index(field, 4)
    with pytest.raises(BadTableError, match="is of another type"):
        chunk_of(content[:at] + damage + content[at + len(field) :])


@pytest.mark.parametrize("nested", [False, True])
def test_memory_does_not_grow_with_a_row_group(tmp_path, nested):
    """64 MiB of texts in one group, whose dictionary is given up after a part of them; another column's is not."""
    texts = [f"{index:016}" * 2**12 for index in range(2**10)]
    answers = [[{"content": text}] for text in texts] if nested else texts
    table = pa.table({"a": answers, "b": ["same", "other"] * 2**9, "c": texts[::-1]})
    pq.write_table(table, tmp_path / "a", row_group_size=2**20, data_page_size=2**16, write_batch_size=32)
    chunks = [chunk_of((tmp_path / "a").read_bytes(), index) for index in range(3)]
    assert [chunk.storage for chunk in chunks] == [Storage.FALLBACK, Storage.DICTIONARY, Storage.FALLBACK]
    del table
    before = pa.default_memory_pool().bytes_allocated()
    for place, (number, row) in enumerate(read_arrow(tmp_path / "a", Kind.PARQUET)):
        assert number == place + 1
        assert row == {"a": answers[place], "b": ("same", "other")[place % 2], "c": texts[-1 - place]}
        assert pa.default_memory_pool().bytes_allocated() - before < 60 * 2**20
    assert place == 2**10 - 1
