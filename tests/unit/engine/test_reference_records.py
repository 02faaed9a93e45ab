"""Records of the reference cache: sealed with the cache's key, and read back."""

from __future__ import annotations

import numpy as np
import pytest

from minimind.engine.reference_records import RECORD, read_records, seal_records

INDICES = np.array([2, 5, 9])
SUMS = np.array([[-1.0, -2.0], [-3.0, -4.0], [-5.0, -6.0]], np.float32)
COUNTS = np.array([[1, 2], [3, 4], [5, 6]])


@pytest.fixture
def path(tmp_path):
    (tmp_path / "rows.bin").write_bytes(seal_records(INDICES, SUMS, COUNTS, "key").tobytes())
    return tmp_path / "rows.bin"


def test_a_record_has_28_bytes():
    """Index 8, two sums 8, two counts 8, checksum 4: 28, without padding."""
    assert RECORD.itemsize == 28


def test_records_are_read_as_they_were_sealed(path):
    records = read_records(path, "key")
    assert records["pair"].tolist() == INDICES.tolist()
    np.testing.assert_array_equal(records["sums"], SUMS)
    np.testing.assert_array_equal(records["counts"], COUNTS)


def test_records_of_another_key_are_invalid(path):
    assert len(read_records(path, "other")) == 0


@pytest.mark.parametrize("missing", [1, 27, 28, 29])
def test_an_incomplete_record_at_the_end_is_dropped(path, missing):
    path.write_bytes(path.read_bytes()[:-missing])
    assert len(read_records(path, "key")) == (1 if missing > 28 else 2)
