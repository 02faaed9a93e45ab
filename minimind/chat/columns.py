"""Two texts side by side in a terminal, whatever their scripts: a Chinese character takes two columns.

left, right, width -> wrapped lines -> "left   │ right"
"""

from __future__ import annotations

import itertools
import unicodedata

_BETWEEN = " │ "
# Narrower columns are harder to read than one text after the other.
LEAST_WIDTH = 80


def width_of(text: str) -> int:
    """Columns that a text takes."""
    return sum(_width(character) for character in text)


def _width(character: str) -> int:
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def wrap(text: str, width: int) -> list[str]:
    """Lines of at most `width` columns; broken at spaces where there are any, else between characters."""
    lines = []
    for paragraph in text.expandtabs(4).split("\n"):
        line, used, space = "", 0, -1
        for character in paragraph:
            if used + _width(character) > width and line:
                # Break behind the last space, unless the new character is one.
                cut = space + 1 if 0 <= space < len(line) and character != " " else len(line)
                lines.append(line[:cut].rstrip())
                line = line[cut:]
                used, space = width_of(line), -1
            if character == " ":
                if not line and lines:
                    continue
                space = len(line)
            line, used = line + character, used + _width(character)
        lines.append(line)
    return lines


def side_by_side(left: str, right: str, width: int) -> str:
    """Two texts in columns, for a terminal of this width."""
    each = (width - width_of(_BETWEEN)) // 2
    pairs = itertools.zip_longest(wrap(left, each), wrap(right, each), fillvalue="")
    return "\n".join(f"{a}{' ' * (each - width_of(a))}{_BETWEEN}{b}".rstrip() for a, b in pairs)
