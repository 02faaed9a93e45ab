"""Sizes of values before they are converted."""

from __future__ import annotations

import pyarrow as pa
import pytest

from minimind.data.sources.arrow_sizes import UnsupportedTypeError, row_bytes

TEXT = "x" * 100


def sizes(array: pa.Array) -> list[int]:
    return row_bytes(pa.record_batch({"a": array})).tolist()


REPEATED = pa.DictionaryArray.from_arrays(pa.array([0, 0, 1, None]), pa.array([TEXT, "y"]))
SIZES = {
    "text": (pa.array([TEXT, "你", None]), [108, 11, 8]),
    "large text": (pa.array([TEXT], pa.large_string()), [108]),
    "bytes": (pa.array([b"abc"]), [11]),
    "a view of texts": (pa.array(["a", TEXT, None, "你"], pa.string_view()).slice(1), [108, 8, 11]),
    "a view of no texts": (pa.array([], pa.string_view()), []),
    "a view of bytes": (pa.array([b"abc"], pa.binary_view()), [11]),
    "numbers": (pa.array([1, None]), [8, 8]),
    "nothing": (pa.nulls(2), [8, 8]),
    "wide numbers": (pa.array([1], pa.decimal256(50)), [32]),
    "dictionary": (REPEATED, [108, 108, 9, 0]),
    "list": (pa.array([["a", "bc"], None, []]), [8 + 9 + 10, 8, 8]),
    "fixed list": (pa.array([["a", "bc"], None], pa.list_(pa.string(), 2)), [8 + 9 + 10, 8 + 8 + 8]),
    "list of a dictionary": (pa.ListArray.from_arrays(pa.array([0, 2, 4]), REPEATED), [8 + 216, 8 + 9]),
    "messages": (pa.array([[{"role": "user", "content": TEXT}]]), [8 + 8 + 12 + 108]),
    "map": (pa.array([[("k", "abc")]], pa.map_(pa.string(), pa.string())), [8 + 8 + 9 + 11]),
}


@pytest.mark.parametrize("name", SIZES)
def test_sizes(name):
    array, expected = SIZES[name]
    assert sizes(array) == expected
    # A slice is counted by itself.
    for index in range(len(array)):
        assert sizes(array.slice(index, 1)) == expected[index : index + 1]


@pytest.mark.parametrize(
    "array",
    [
        pa.array([["a"]], pa.list_view(pa.string())),
        pa.RunEndEncodedArray.from_arrays(pa.array([1], pa.int32()), pa.array([1])),
    ],
    ids=str,
)
def test_type_of_unknown_size_is_refused(array):
    with pytest.raises(UnsupportedTypeError, match=r"its column 'a' has the type .*; write it as text or list"):
        sizes(array)
