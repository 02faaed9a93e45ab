"""What all charts share: their coordinates, texts in them, and the legend above them."""

from __future__ import annotations

from collections.abc import Sequence

from minimind.pages.markup import Markup, element

# Width in units of a chart's own coordinates; a unit is a pixel where the chart has its full width.
WIDTH = 640


def svg(height: float, *children: Markup) -> Markup:
    """A chart of the full width, as wide as the page lets it be."""
    return element("svg", *children, viewBox=f"0 0 {WIDTH} {number(height)}", role="img", cls="chart")


def text(x: float, y: float, content: str, anchor: str = "start") -> Markup:
    """A text in a chart."""
    return element("text", content, x=number(x), y=number(y), text_anchor=anchor)


def number(value: float) -> str:
    """A coordinate, to a tenth of a unit."""
    return f"{value:.1f}".removesuffix(".0")


def legend(names: Sequence[tuple[str, str]]) -> Markup:
    """Names and colours above a chart; nothing for a single one."""
    if len(names) < 2:
        return Markup()
    keys = [element("span", element("i", style=f"background:{colour}"), name) for name, colour in names]
    return element("div", *keys, cls="legend")
