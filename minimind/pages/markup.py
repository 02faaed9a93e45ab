"""HTML and SVG that cannot be forged: every text is escaped unless it was made here.

element("p", text, element("b", text), cls="note") -> Markup
"""

from __future__ import annotations

import html
import re


class Markup(str):
    """Text that is HTML already: made by `element` or `raw`."""

    __slots__ = ()


# Elements that have no content and no closing tag.
_EMPTY = frozenset({"meta", "br", "hr", "input"})
# Elements of HTML, not of SVG, whose texts are broken into lines.
_PROSE = frozenset({"p", "li", "td", "th", "h3"})
# Letters and underscores alone, so that an escaped text stays one.
_FLAG = re.compile(r"(?<![\w-])--[a-z][a-z_]{1,30}(?![\w-])")


def element(name: str, /, *children: object, **attributes: object) -> Markup:
    """An element.

    Args:
        children: `Markup` as it is; anything else as text, escaped.
        attributes: values are escaped. `cls` is the class; an underscore in a name is a hyphen; None leaves one out.
    """
    given = {("class" if key == "cls" else key.replace("_", "-")): value for key, value in attributes.items()}
    written = "".join(f' {key}="{html.escape(str(value))}"' for key, value in given.items() if value is not None)
    if name in _EMPTY:
        return Markup(f"<{name}{written}>")
    return Markup(f"<{name}{written}>{joined(*children, flags=name in _PROSE)}</{name}>")


def joined(*children: object, flags: bool = False) -> Markup:
    """Children one after the other; texts escaped.

    Args:
        flags: flags in texts become elements, which a line does not divide behind their hyphens.
    """
    return Markup("".join(child if isinstance(child, Markup) else _escaped(str(child), flags) for child in children))


def _escaped(text: str, flags: bool) -> str:
    safe = html.escape(text)
    return _FLAG.sub(r'<span class="flag">\g<0></span>', safe) if flags else safe


def raw(text: str) -> Markup:
    """A constant of the program that is HTML; never anything that a user or a file gave."""
    return Markup(text)
