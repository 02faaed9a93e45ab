"""Bytes of a file: bounds on what a packed file unpacks to, several packed parts, unpacked copies."""

from __future__ import annotations

import lzma

import pytest

from minimind.data.sources import streams
from minimind.data.sources.streams import open_stream, unpacked_file
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
