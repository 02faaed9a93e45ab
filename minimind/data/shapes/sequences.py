"""Objects of lists that stand for lists of objects, as datasets before version 4 stored sequences of objects.

row with {"from": ["human", "gpt"], "value": ["Hi", "Hello"]} -> with_objects -> [{"from": "human", "value": "Hi"}, ...]
"""

from __future__ import annotations

from typing import Any

from minimind.data.messages import listed
from minimind.data.sources import RowError

# Keys of which a message, or one of several answers, has one each.
_MESSAGES = (("role", "content"), ("from", "value"))
_ANSWERS = ({"response", "answer", "text", "completion", "generation"}, {"overall_score", "score", "rating", "rank"})


def with_objects(row: dict[str, Any], names: tuple[str, str]) -> dict[str, Any]:
    """The row with lists of objects in its columns and in the fields of its columns.

    Args:
        names: further keys of the role and the content of a message.

    Raises:
        RowError: the lists of a column do not belong together.
    """
    changed: dict[str, Any] = {}
    for column, value in row.items():
        if not isinstance(value, dict):
            continue
        if _is_sequence(value, names):
            changed[column] = _objects(column, value)
        elif inner := {key: one for key, one in value.items() if isinstance(one, dict) and _is_sequence(one, names)}:
            changed[column] = {**value, **{key: _objects(f"{column}.{key}", one) for key, one in inner.items()}}
    return {**row, **changed} if changed else row


def _is_sequence(value: dict[str, Any], names: tuple[str, str]) -> bool:
    lists = {key for key, one in value.items() if isinstance(one, list)}
    # The content of one message may be a list of parts, but its role is a text.
    return any(lists.issuperset(pair) for pair in (*_MESSAGES, names)) or not any(map(lists.isdisjoint, _ANSWERS))


def _objects(place: str, value: dict[str, Any]) -> list[dict[str, Any]]:
    given = {key: one for key, one in value.items() if one is not None}
    if others := [key for key, one in given.items() if not isinstance(one, list)]:
        raise RowError(f"{place!r} is an object of lists, but {listed(others)} in it is no list")
    lengths = {key: len(one) for key, one in given.items()}
    if len(set(lengths.values())) > 1:
        counted = ", ".join(f"{key!r} has {length}" for key, length in list(lengths.items())[:4])
        raise RowError(f"{place!r} is an object of lists that are not equally long ({counted})")
    length = next(iter(lengths.values()))
    # Every object has every key then, so a null says nothing.
    return [
        {key: one[index] for key, one in given.items() if one[index] is not None or key == "content"}
        for index in range(length)
    ]
