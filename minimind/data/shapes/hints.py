"""What to do about a row that no shape can read, where its columns or values show what went wrong.

row, columns that shapes read -> hint_of_columns, hint_of_values -> the end of an error message, or an empty text
"""

from __future__ import annotations

from typing import Any

from minimind.data.messages import listed
from minimind.data.shapes.shape import Row

_TABLE = (
    "; it is a whole table in one object; write each row as an object of its own: to_json(orient='records', lines=True)"
)


def hint_of_columns(row: Row, columns: frozenset[str]) -> str:
    """For a row whose columns are those of no shape."""
    if isinstance(row.get("columns"), list) and isinstance(row.get("data"), list):
        return _TABLE
    for name, value in row.items():
        if name not in columns and isinstance(value, list) and value and all(_is_row(one, columns) for one in value):
            return f"; the rows seem to be in the list {name!r}; write that list alone into the file"
    renamed = {name: _plain(name) for name in row if name not in columns}
    near = {name: plain for name, plain in renamed.items() if plain in columns and plain not in row}
    if near and len(set(near.values())) == len(near):
        return f"; rename the column{'s' if len(near) > 1 else ''} {listed(near)} to {listed(near.values())}"
    return hint_of_values(row, columns)


def hint_of_values(row: Row, columns: frozenset[str]) -> str:
    """For a row whose columns are those of a shape, but not its values."""
    given = {name: value for name, value in row.items() if name in columns}
    if data := [name for name, value in given.items() if isinstance(value, bytes)]:
        return f"; {listed(data)} {'are' if len(data) > 1 else 'is'} bytes; write texts as columns of text"
    return _TABLE if len(given) > 1 and _is_table(list(given.values())) else ""


def _is_row(value: Any, columns: frozenset[str]) -> bool:
    return isinstance(value, dict) and not columns.isdisjoint(value)


def _is_table(values: list[Any]) -> bool:
    """Whether values are the cells of a table's columns, as pandas writes them: by number, or one after the other."""
    if all(isinstance(value, dict) and "0" in value for value in values):
        return True
    texts = all(isinstance(value, list) and all(isinstance(one, str) for one in value) for value in values)
    return texts and len({len(value) for value in values}) == 1


def _plain(name: str) -> str:
    return name.strip().casefold().replace(" ", "_").replace("-", "_")
