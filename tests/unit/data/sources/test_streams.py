"""Bytes of a file: bounds on what a packed file unpacks to, several packed parts, unpacked copies."""

from __future__ import annotations

import bz2
import codecs
import gzip
import lzma

import pytest

from minimind.data.sources import streams
from minimind.data.sources.streams import beginning_of, open_stream, open_stream_at, unpacked_file
from minimind.errors import DataError
from tests.unit.data.sources.files import PACKED


@pytest.fixture
def write(tmp_path):
    def write(content: bytes):
        (tmp_path / "a").write_bytes(content)
        return tmp_path / "a"

    return write


def read(path) -> bytes:
    with open_stream(path) as stream:
        return stream.read()


@pytest.mark.parametrize("pack", PACKED)
def test_packed_parts_follow_each_other(write, pack):
    assert read(write(PACKED[pack](b"one ") + PACKED[pack](b"two"))) == b"one two"


@pytest.mark.parametrize("pack", PACKED)
def test_what_unpacks_to_too_much_is_refused(write, pack, monkeypatch):
    monkeypatch.setattr(streams, "FREE_BYTES", 1000)
    text = bytes(range(32, 127)) * 30_000
    path = write(PACKED[pack](text[:1000]))
    assert read(path) == text[:1000]
    path = write(PACKED[pack](text))
    monkeypatch.setattr(streams, "RATIO", 20)
    with pytest.raises(DataError, match="a: unpacks to more than 0 MiB, over 20 times its size"):
        read(path)


def test_xz_that_asks_for_much_memory_is_refused(write):
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 2**30}]
    with pytest.raises(DataError, match=r"a: cannot read the file.*Memory usage limit"):
        read(write(lzma.compress(b"{}", filters=filters)))


def test_only_a_packed_file_is_copied(write):
    plain = write(b"PAR1")
    with unpacked_file(plain) as path:
        assert path == plain
    with unpacked_file(write(PACKED["zst"](b"PAR1"))) as path:
        assert path != plain
        assert path.read_bytes() == b"PAR1"
    assert not path.exists()


@pytest.mark.parametrize(
    ("content", "start"),
    [
        (b"abc", 0),
        (b"", 0),
        (codecs.BOM_UTF8 + b"abc", 3),
        ("abc".encode("utf-16"), None),
        ("abc".encode("utf-32"), None),
        (gzip.compress(b"abc", mtime=0), None),
        (bz2.compress(b"abc"), None),
    ],
)
def test_where_the_text_of_a_file_begins_if_it_is_there_as_it_is(tmp_path, content, start):
    path = tmp_path / "a"
    path.write_bytes(content)
    assert beginning_of(path) == (open_stream(path).read(), start)
    if start is not None:
        assert open_stream_at(path, start).read() == open_stream(path).read() == content[start:]


def test_a_file_that_is_gone_is_named(tmp_path):
    for opened in (beginning_of, lambda path: open_stream_at(path, 5)):
        with pytest.raises(DataError, match="gone: cannot read the file"):
            opened(tmp_path / "gone")
