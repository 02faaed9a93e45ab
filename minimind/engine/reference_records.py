"""File format of cached reference log-probs: one fixed-size record per pair, each with its own checksum.

pairs, sums, counts, cache key -> seal_records -> records -> bytes in a file -> read_records -> undamaged records
"""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

# One pair: its index among the tokenised pairs of its source, the summed log-probs and the number of targets of its
# chosen and rejected rows, and a checksum of these and of the cache's key.
RECORD = np.dtype([("pair", "<i8"), ("sums", "<f4", 2), ("counts", "<i4", 2), ("checksum", "<u4")])

Records = NDArray[np.void]


def seal_records(pairs: NDArray[Any], sums: NDArray[Any], counts: NDArray[Any], key: str) -> Records:
    """Records with checksums. The checksum includes the cache's key, so records of another cache are invalid here.

    Args:
        pairs: (n,) int64, indices of the pairs in their table.
        sums: (n, 2) float32, summed log-probs of chosen and rejected.
        counts: (n, 2), numbers of targets of chosen and rejected.
        key: the cache's key.
    """
    records = np.zeros(len(pairs), RECORD)
    records["pair"], records["sums"], records["counts"] = pairs, sums, counts
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


def _checksums(records: Records, key: str) -> NDArray[np.uint32]:
    # The checksum is the last field of a record and does not cover itself.
    start, content, size = zlib.crc32(key.encode()), records.tobytes(), RECORD.itemsize
    ends = range(size, len(content) + 1, size)
    return np.array([zlib.crc32(content[end - size : end - 4], start) for end in ends], np.uint32)
