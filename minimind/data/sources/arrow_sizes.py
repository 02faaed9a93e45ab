"""Bytes that values of Arrow arrays have as Python values, before they are converted.

An array can repeat a text without storing it twice (dictionaries), so its memory says nothing about its values.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as kinds
from numpy.typing import NDArray

# What a value counts besides its text.
_VALUE_BYTES = 8


class UnsupportedTypeError(ValueError):
    """A type of which the size is not known, in words for the user."""


def row_bytes(batch: pa.RecordBatch) -> NDArray[np.int64]:
    """Bytes of each row, (rows,).

    Raises:
        UnsupportedTypeError: a column has a type that no preference data need; names it.
    """
    total = np.zeros(batch.num_rows, np.int64)
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            total += _value_bytes(column)
        except UnsupportedTypeError as error:
            raise UnsupportedTypeError(f"its column {name!r} has the type {error}; write it as text or list") from None
    return total


def _value_bytes(array: Any) -> NDArray[np.int64]:
    """Bytes of each value of an array."""
    kind = array.type
    if isinstance(array, pa.ExtensionArray):
        return _value_bytes(array.storage)
    if kinds.is_dictionary(kind):
        known = np.append(_value_bytes(array.dictionary), 0)
        indices = pc.fill_null(array.indices.cast(pa.int64()), len(array.dictionary))
        return known[indices.to_numpy(zero_copy_only=False)]
    if kinds.is_struct(kind):
        parts = (_value_bytes(array.field(index)) for index in range(kind.num_fields))
        return sum(parts, np.full(len(array), _VALUE_BYTES, np.int64))
    if kinds.is_list(kind) or kinds.is_large_list(kind) or kinds.is_map(kind):
        offsets = array.offsets.to_numpy(zero_copy_only=False).astype(np.int64)
        # The values of a slice of the array lie within those of the whole.
        values = array.values.slice(offsets[0], offsets[-1] - offsets[0])
        ends = np.concatenate(([0], np.cumsum(_value_bytes(values))))
        return _VALUE_BYTES + np.diff(ends[offsets - offsets[0]])
    if kinds.is_fixed_size_list(kind):
        # `flatten` would leave out the values of null lists.
        values = array.values.slice(array.offset * kind.list_size, len(array) * kind.list_size)
        return _VALUE_BYTES + _value_bytes(values).reshape(len(array), kind.list_size).sum(1)
    if kinds.is_string(kind) or kinds.is_large_string(kind) or kinds.is_binary(kind) or kinds.is_large_binary(kind):
        lengths = pc.fill_null(pc.binary_length(array).cast(pa.int64()), 0)
        return _VALUE_BYTES + lengths.to_numpy(zero_copy_only=False)
    if kinds.is_string_view(kind) or kinds.is_binary_view(kind):
        valid, views = array.is_valid().to_numpy(zero_copy_only=False), array.buffers()[1]
        # A view is 16 bytes, and the first four are the length.
        lengths = np.frombuffer(views, np.int32).reshape(-1, 4)[array.offset : array.offset + len(array), 0]
        return _VALUE_BYTES + np.where(valid, lengths, 0).astype(np.int64)
    if kinds.is_nested(kind) or kinds.is_run_end_encoded(kind) or "view" in str(kind):
        raise UnsupportedTypeError(str(kind))
    # Numbers, dates and the like.
    return np.full(len(array), max(_VALUE_BYTES, -(-(kind.bit_width if kind != pa.null() else 0) // 8)), np.int64)
