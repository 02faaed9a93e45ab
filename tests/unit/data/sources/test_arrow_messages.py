"""Messages of Arrow files: complete files pass, others and bombs do not."""

from __future__ import annotations

import pytest

from minimind.data.sources import arrow_messages
from minimind.data.sources.arrow_messages import BadMessageError, check_messages
from tests.unit.data.sources.files import arrow

ROWS = [{"a": f"{index}" * 100, "b": [index]} for index in range(5)]


@pytest.mark.parametrize("compression", [None, "lz4", "zstd"])
@pytest.mark.parametrize("is_file", [True, False])
def test_only_the_whole_file_passes(tmp_path, is_file, compression):
    content = arrow(ROWS, is_file=is_file, compression=compression)
    path = tmp_path / "a.arrow"
    path.write_bytes(content)
    check_messages(path, is_file=is_file)
    for end in {*range(0, len(content), 100), *range(len(content) - 32, len(content), 4)}:
        path.write_bytes(content[:end])
        with pytest.raises(BadMessageError, match=r"incomplete|damaged"):
            check_messages(path, is_file=is_file)


@pytest.mark.parametrize("compression", ["lz4", "zstd"])
def test_unpacked_size_is_bounded(tmp_path, monkeypatch, compression):
    path = tmp_path / "a.arrow"
    path.write_bytes(arrow([{"a": "x" * 2**20}], compression=compression))
    check_messages(path, is_file=True)
    monkeypatch.setattr(arrow_messages, "_BATCH_BYTES", 2**20)
    with pytest.raises(BadMessageError, match="a batch of its rows unpacks to 1 MiB, and 1 MiB are the most"):
        check_messages(path, is_file=True)
