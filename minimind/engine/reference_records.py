"""File format of cached reference log-probs: one fixed-size record per pair, each with its own checksum.

lines, sums, counts, cache key -> seal_records -> records -> bytes in a file -> read_records -> undamaged records
"""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

# One pair: its line in the preference file, the summed log-probs and the number of targets of its chosen and rejected
# rows, and a checksum of these and of the cache's key.
RECORD = np.dtype([("line", "<i8"), ("sums", "<f4", 2), ("counts", "<i4", 2), ("checksum", "<u4")])

Records = NDArray[np.void]


def seal_records(lines: NDArray[Any], sums: NDArray[Any], counts: NDArray[Any], key: str) -> Records:
    """Records with checksums. The checksum includes the cache's key, so records of another cache are invalid here.

    Args:
        lines: (n,) int64, lines of the pairs.
        sums: (n, 2) float32, summed log-probs of chosen and rejected.
        counts: (n, 2), numbers of targets of chosen and rejected.
        key: the cache's key.
    """
    records = np.zeros(len(lines), RECORD)
    records["line"], records["sums"], records["counts"] = lines, sums, counts
    records["checksum"] = _checksums(records, key)
    return records


def read_records(path: Path, key: str) -> Records:
    """The complete and undamaged records of a file. A process killed during a write leaves an incomplete last record.

    Raises:
        OSError: the file cannot be read.
    """
    content = path.read_bytes()
    records = np.frombuffer(content, RECORD, len(content) // RECORD.itemsize)
    return records[records["checksum"] == _checksums(records, key)]


def find_lines(lines: NDArray[np.int64], wanted: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Indices of `wanted` in ascending `lines`, and whether each was found; an index is only valid if it was."""
    indices = np.searchsorted(lines, wanted).clip(max=len(lines) - 1)
    return indices, lines[indices] == wanted


def _checksums(records: Records, key: str) -> NDArray[np.uint32]:
    # The checksum is the last field of a record and does not cover itself.
    start, content, size = zlib.crc32(key.encode()), records.tobytes(), RECORD.itemsize
    ends = range(size, len(content) + 1, size)
    return np.array([zlib.crc32(content[end - size : end - 4], start) for end in ends], np.uint32)
