"""The shapes of rows: from one JSON value to checked pairs.

    bytes or a dict -> registry.py (parse_rows) -> the one shape that fits -> its conversion -> PreferenceRow (rows.py)
                       ^ SHAPES: messages.py, texts.py, sharegpt.py, ...

A conversion brings a prompt and two halves into the form of messages, with helpers of `halves.py`. All conversions end
with `checked_row`, so the checks are the same for every shape.
"""

from minimind.data.shapes.options import DEFAULT_SHAPES, Items, ShapeOptions
from minimind.data.shapes.registry import ALONE, PLAIN, SHAPES, parse_answers, parse_items, parse_rows, shape_named
from minimind.data.shapes.shape import RowShape

__all__ = [
    "ALONE",
    "DEFAULT_SHAPES",
    "PLAIN",
    "SHAPES",
    "Items",
    "RowShape",
    "ShapeOptions",
    "parse_answers",
    "parse_items",
    "parse_rows",
    "shape_named",
]
