"""The shape of rows for pretraining: a text.

row -> the text -> TextRow
"""

from __future__ import annotations

from collections.abc import Mapping

from minimind.data.messages import shown
from minimind.data.rows import TextRow
from minimind.data.shapes.options import ShapeOptions
from minimind.data.shapes.shape import Row, RowShape, given_columns
from minimind.data.sources import RowError

# Columns that may have the text; the first that is given does.
_TEXTS = ("text", "content")


def _convert(row: Row, options: ShapeOptions) -> list[TextRow]:
    given = given_columns(row)
    column = next(name for name in _TEXTS if name in given)
    if not isinstance(row[column], str):
        raise RowError(f"{column!r} is no text: {shown(row[column])}")
    return [TextRow(text=row[column], unused=tuple(name for name in row if name in given - {column}))]


TEXT_SHAPES: Mapping[str, RowShape] = {
    "texts": RowShape(title="a text", needs=(_TEXTS,), fits=lambda row, given: True, convert=_convert)
}
