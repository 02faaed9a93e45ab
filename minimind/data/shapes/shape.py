"""What a shape of rows is: the columns by which it is recognised, and the conversion to checked pairs.

row -> RowShape.has_columns, RowShape.fits -> RowShape.convert -> PreferenceRow, AnswerRow
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from minimind.data.rows import CheckedRow
from minimind.data.shapes.options import ShapeOptions

Row = Mapping[str, Any]
# Names of the columns of the better and the worse answer.
HALVES = (
    ("chosen", "rejected"),
    ("chosen_response", "rejected_response"),
    ("response_chosen", "response_rejected"),
    ("response_j", "response_k"),
)
# Columns of a whole conversation beside its two answers.
CONVERSATIONS = frozenset({"conversations", "messages"})
# Columns whose empty text is a value: an empty answer.
_ANSWERS = frozenset(name for names in HALVES for name in names)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RowShape:
    """One way to write preference pairs, or answers with a label.

    Attributes:
        title: what people call it, for messages.
        needs: the columns that a row has, each as the names of which one is enough. A row that has the first of them,
            but not the others, resembles this shape.
        fits: a row with these columns, `given_columns` of it -> whether their values are those of this shape, and no
            other shape is meant.
        convert: row -> its pairs or answers. Raises `RowError` for a row that is damaged or of another shape.
        several: a row may have several answers, and gives no pair, one or more.
        note: how rows are read where people may expect otherwise, for the first lines of a run.
    """

    title: str
    needs: tuple[tuple[str, ...], ...]
    fits: Callable[[Row, frozenset[str]], bool]
    convert: Callable[[Row, ShapeOptions], Sequence[CheckedRow]]
    several: bool = False
    note: str = ""

    def found(self, given: frozenset[str]) -> list[str]:
        """Names of the needed columns that a row has, one of each group."""
        first = (next((name for name in names if name in given), None) for names in self.needs)
        return [name for name in dict.fromkeys(first) if name is not None]

    def has_columns(self, given: frozenset[str]) -> bool:
        """Whether a row has all needed columns."""
        return not any(map(given.isdisjoint, self.needs))

    def missing(self, given: frozenset[str]) -> list[tuple[str, ...]]:
        """Groups of needed columns of which a row has none."""
        return [names for names in self.needs if given.isdisjoint(names)]


def given_columns(row: Row) -> frozenset[str]:
    """Names of the columns that have a value: null, an empty text and an empty list mean "not given"."""
    return frozenset(name for name, value in row.items() if is_given(value) or (value is not None and name in _ANSWERS))


def is_given(value: Any) -> bool:
    """Whether a column's value says anything."""
    return value is not None and not (isinstance(value, str | list | dict) and not value)
