"""Parts of a page that needs no other file: the document, its sections, tiles, tables, notes and legends.

title, Markup of sections -> document -> text of an HTML file
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from minimind.pages.drawing import chart_style
from minimind.pages.markup import Markup, element, raw

_STYLE = Path(__file__).with_name("style.css")


def document(title: str, *body: Markup, lang: str = "en") -> str:
    """The whole page."""
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", title),
        element("style", raw(f"{chart_style()}{_STYLE.read_text(encoding='utf-8')}")),
    )
    return "<!doctype html>\n" + element("html", head, element("body", *body), lang=lang) + "\n"


def section(title: str, content: Iterable[Markup]) -> Markup:
    """A box with a heading."""
    return element("section", element("h2", title), *content)


def tiles(values: Iterable[tuple[str, str]]) -> Markup:
    """Figures, each with what it is."""
    return element(
        "div", *(element("div", element("b", value), name, cls="tile") for value, name in values), cls="tiles"
    )


def note(text: str) -> Markup:
    """A remark."""
    return element("p", text, cls="soft")


def legend(names: Sequence[tuple[str, str]], least: int = 2) -> Markup:
    """Names and colours above a chart; nothing for fewer than `least`."""
    if len(names) < least:
        return Markup()
    keys = [element("span", element("i", style=f"background:{colour}"), name) for name, colour in names]
    return element("div", *keys, cls="legend")


def axis_name(text: str) -> Markup:
    """What the numbers below a chart are."""
    return element("div", text, cls="axis-name")


def table(heads: Sequence[str], lines: Sequence[Sequence[object]], marked: Sequence[bool] = ()) -> Markup:
    """A table; a column whose head begins with # has numbers."""
    kinds = ["number" if head.startswith("#") else None for head in heads]
    first = element(
        "tr", *(element("th", head.removeprefix("#"), cls=kind) for head, kind in zip(heads, kinds, strict=True))
    )
    rest = [
        element(
            "tr",
            *(element("td", cell, cls=kind) for cell, kind in zip(line, kinds, strict=True)),
            cls="now" if index < len(marked) and marked[index] else None,
        )
        for index, line in enumerate(lines)
    ]
    return element("table", first, *rest)
