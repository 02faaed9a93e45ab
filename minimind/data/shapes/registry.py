"""Which shape a row has, and its pairs.

    bytes or a dict -> parse_rows    -> the shape of --data_format, or the only one that fits -> its conversion -> pairs
                    -> parse_answers -> the same -> answers with labels; each pair is two of them
                    -> parse_items   -> one of these, or a row that stands alone, by one of its own shapes

To add a shape, write its conversion, an entry of `SHAPES`, a row of the table in launch/README.md and its tests.
"""

from __future__ import annotations

import dataclasses
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

from minimind.data.messages import listed
from minimind.data.rows import AnswerRow, CheckedRow, PreferenceRow, answers_of
from minimind.data.shapes.alone import CONVERSATION_SHAPES
from minimind.data.shapes.answers import ANSWERS, ULTRAFEEDBACK
from minimind.data.shapes.cells import with_messages
from minimind.data.shapes.comparisons import COMPARISON
from minimind.data.shapes.conversations import MINIMIND, OPENAI, SHAREGPT, SWIFT
from minimind.data.shapes.dataset_info import FILE_NAME, DatasetInfo
from minimind.data.shapes.hints import hint_of_columns, hint_of_values
from minimind.data.shapes.options import AUTO, DEFAULT_SHAPES, Items, ShapeOptions
from minimind.data.shapes.plain_texts import TEXT_SHAPES
from minimind.data.shapes.sequences import with_objects
from minimind.data.shapes.shape import Row, RowShape, given_columns
from minimind.data.shapes.texts import ALPACA, HH, TRL
from minimind.data.shapes.unpaired import UNPAIRED
from minimind.data.sources import RowError, parse_json

# Values of --data_format besides AUTO.
SHAPES: Mapping[str, RowShape] = {
    "minimind": MINIMIND,
    "trl": TRL,
    "sharegpt": SHAREGPT,
    "alpaca": ALPACA,
    "hh": HH,
    "ultrafeedback": ULTRAFEEDBACK,
    "answers": ANSWERS,
    "openai": OPENAI,
    "swift": SWIFT,
    "comparison": COMPARISON,
    "unpaired": UNPAIRED,
}
# The shapes of rows that stand alone, of jobs over them.
ALONE: Mapping[Items, Mapping[str, RowShape]] = {
    Items.CONVERSATIONS: CONVERSATION_SHAPES,
    Items.TEXTS: TEXT_SHAPES,
}
# The shapes that need no mention.
PLAIN = frozenset({"minimind", "conversations", "texts"})
_JSON_TYPES = {list: "array", str: "string", int: "number", float: "number", bool: "boolean", type(None): "null"}


def parse_rows(content: bytes | dict[str, Any], options: ShapeOptions = DEFAULT_SHAPES) -> list[PreferenceRow]:
    """Convert one raw row to checked pairs.

    Args:
        content: one JSON value, or a row of another file with Python values.

    Returns:
        Its pairs, most often one; none, if all of several answers have the same score.

    Raises:
        RowError: the reason, without file and line; a row of one answer is no pair.
    """
    rows = _parse(content, options)
    pairs = [row for row in rows if isinstance(row, PreferenceRow)]
    if len(pairs) < len(rows):
        raise RowError(
            "it is one answer with a label, and the loss takes pairs of answers; losses of single answers are kto, bco "
            "and apo_zero_unpaired (--loss)"
        )
    return pairs


def parse_answers(content: bytes | dict[str, Any], options: ShapeOptions = DEFAULT_SHAPES) -> list[AnswerRow]:
    """Convert one raw row to checked answers with labels; of a pair, chosen is desirable and rejected is not.

    Args:
        content: as for `parse_rows`.

    Raises:
        RowError: the reason, without file and line.
    """
    found: list[AnswerRow] = []
    for row in _parse(content, options):
        if isinstance(row, AnswerRow):
            found.append(row)
        elif isinstance(row, PreferenceRow):
            found += answers_of(row)
    return found


def parse_items(content: bytes | dict[str, Any], options: ShapeOptions) -> Sequence[CheckedRow]:
    """Convert one raw row to what `options.items` says: pairs, answers with labels, or rows that stand alone.

    Args:
        content: as for `parse_rows`.

    Raises:
        RowError: the reason, without file and line.
    """
    if options.items in ALONE:
        return _parse(content, options)
    return parse_rows(content, options) if options.items is Items.PAIRS else parse_answers(content, options)


def shape_named(name: str) -> RowShape:
    """The shape of a name that a table has."""
    return next(shapes[name] for shapes in (SHAPES, *ALONE.values()) if name in shapes)


def _parse(content: bytes | dict[str, Any], options: ShapeOptions) -> Sequence[CheckedRow]:
    """The pairs or answers of a raw row, by its shape."""
    try:
        row = parse_json(content) if isinstance(content, bytes) else content
        if not isinstance(row, dict):
            raise RowError(f"unknown row shape: a JSON {_JSON_TYPES[type(row)]}; a row must be an object")
        row = with_objects(row, (options.names.role, options.names.content))
        if options.dataset_info is not None:
            return _convert_by_entry(row, options.dataset_info, options, is_json=isinstance(content, bytes))
        if options.items is not Items.TEXTS:
            row = with_messages(row, options.names, is_json=isinstance(content, bytes))
        if options.data_format != AUTO:
            return _convert_named(row, options)
        name = _recognise(row, options)
        try:
            return _convert(name, row, options)
        except RowError as error:
            reason = f"{error}{hint_of_values(row, _columns(options))}"
            raise RowError(reason if name in PLAIN else f"read as {shape_named(name).title}: {reason}") from error
    except RecursionError as error:
        # The parser accepts deeper nesting than comparison and repr do, so the checks can fail here as well.
        raise RowError("invalid JSON: nested too deeply") from error


def _convert(name: str, row: Row, options: ShapeOptions) -> Sequence[CheckedRow]:
    shape = _known(options)[name]
    if missing := shape.missing(given_columns(row)):
        raise RowError(_near(shape, row, missing))
    return [dataclasses.replace(pair, shape=name) for pair in shape.convert(row, options)]


def _convert_named(row: dict[str, Any], options: ShapeOptions) -> Sequence[CheckedRow]:
    """The pairs of a row as --data_format says; an error names the shape that the row has instead."""
    name = options.data_format
    try:
        return _convert(name, row, options)
    except RowError as error:
        reason = f"--data_format {name}: {error}"
        try:
            other = _recognise(row, options)
        except RowError:
            other = name
        if other != name:
            reason += f"; the columns are those of {shape_named(other).title}, --data_format {other}"
        raise RowError(reason) from error


def _convert_by_entry(
    row: dict[str, Any], entry: DatasetInfo, options: ShapeOptions, *, is_json: bool
) -> Sequence[CheckedRow]:
    try:
        row = entry.renamed(row)
        if options.items is not Items.TEXTS:
            row = with_messages(row, entry.names, is_json=is_json)
        return _convert(entry.shape, row, options)
    except RowError as error:
        raise RowError(f"read by {FILE_NAME} as {shape_named(entry.shape).title}: {error}") from error


def _known(options: ShapeOptions) -> Mapping[str, RowShape]:
    """The shapes that rows of these items can have."""
    return ALONE.get(options.items, SHAPES)


def _columns(options: ShapeOptions) -> frozenset[str]:
    """The columns by which shapes are recognised."""
    return frozenset(name for shape in _known(options).values() for names in shape.needs for name in names)


def _recognise(row: Row, options: ShapeOptions) -> str:
    """Name of the shape whose columns a row has.

    Raises:
        RowError: there is none, or more than one.
    """
    given, known = given_columns(row), _known(options)
    candidates = [name for name, shape in known.items() if shape.has_columns(given)]
    fitting = [name for name in candidates if known[name].fits(row, given)]
    if len(fitting) > 1:
        readings = " or as ".join(f"{known[name].title} ({listed(known[name].found(given))})" for name in fitting)
        formats = " or ".join(f"--data_format {name}" for name in fitting)
        raise RowError(f"can be read as {readings}; say which by {formats}")
    if fitting or candidates:
        # Where only the values are wrong, the conversion says which.
        return (fitting or candidates)[0]
    # By the first column, or the last one if that is the rejected answer; prompts alone say nothing.
    telling = {name: {*shape.needs[0], *(shape.needs[-1] if "rejected" in shape.needs[-1] else ())}
               for name, shape in known.items()}  # fmt: skip
    resembled = [shape for name, shape in known.items() if not given.isdisjoint(telling[name])]
    if not resembled:
        if empty := [repr(name) for name in row if any(name in columns for columns in telling.values())]:
            raise RowError(f"nothing is in {' and '.join(empty)}")
        hint = hint_of_columns(row, _columns(options)) or "; see the shapes of rows in launch/README.md"
        raise RowError(f"unknown row shape: {_describe(row)}{hint}")
    # The shape of which fewest columns are missing, and of these the one of which most are there.
    shape = min(resembled, key=lambda one: (len(one.missing(given)), -len(one.found(given))))
    raise RowError(f"{_near(shape, row, shape.missing(given))}{hint_of_columns(row, _columns(options))}")


def _near(shape: RowShape, row: Row, missing: list[tuple[str, ...]]) -> str:
    """What a row has of a shape, and what it lacks."""
    found = shape.found(given_columns(row))
    there = f"{' and '.join(map(repr, found))} {'are' if len(found) > 1 else 'is'} there, " if found else ""
    lacking = list(dict.fromkeys(repr(names[0]) for names in missing))
    return f"looks like {shape.title}: {there}{' and '.join(lacking)} {'are' if len(lacking) > 1 else 'is'} not"


def _describe(row: Row) -> str:
    """The first keys of an object; short enough for a message."""
    shortener = reprlib.Repr()
    shortener.maxlist, shortener.maxstring = 4, 20
    return f"an object with the keys {shortener.repr(list(row))}"
