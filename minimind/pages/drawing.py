"""What draws with pygal: its settings, and its charts as markup that refers to nothing else.

pygal's chart -> picture -> Markup of an <svg>, coloured by the page's style sheet

A picture has no words but numbers: names stand around it as HTML, where they keep their size on a phone and come from
nobody's row. pygal is imported when something is drawn: no run pays for it at its start.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from minimind.pages.markup import Markup, element, joined, raw

# Width in units of a chart's own coordinates: between the pixels that it has on a phone and in a column of a page, so
# that numbers are read at about their size in both.
WIDTH = 440
# People who do not see all colours can tell these apart (Okabe and Ito, 2008).
BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY = "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"
GREY = "#d5dbe1"

# Attributes and classes of pygal's that a page keeps; its style sheet knows the classes.
_ATTRIBUTES = ("d", "x", "y", "cx", "cy", "r", "width", "height", "transform")
_CLASSES = frozenset({"axis", "x", "y", "line", "guide", "series", "title"})
_DROPPED_TAGS, _DROPPED_CLASSES = frozenset({"defs", "title"}), frozenset({"background", "tooltip"})
_STYLE = Path(__file__).with_name("charts.css")
_DIGITS = re.compile(r"\d+\.\d+")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Look:
    """How a series looks.

    Attributes:
        opacity: of its bars and dots.
        stroke: width of its lines.
    """

    colour: str
    opacity: float = 1.0
    stroke: float = 2.2

    @property
    def style(self) -> str:
        return f"color:{self.colour};fill-opacity:{self.opacity:g};stroke-width:{self.stroke:g}"


def settings(height: float) -> Mapping[str, Any]:
    """What all charts give to pygal: no script, no style sheet of another site, no legend, numbers of 12 units."""
    from pygal.style import Style

    room = {"margin": 0, "margin_top": 8, "margin_right": 14, "margin_bottom": 6, "spacing": 6}
    return {
        "width": WIDTH,
        "height": height,
        **room,
        "style": Style(label_font_size=12),
        "show_legend": False,
        "truncate_label": -1,
        "no_data_text": "",
        "js": (),
        "css": (),
    }


def titles(texts: Sequence[str]) -> Callable[[object, int], str]:
    """What a browser says below the pointer of each value of a series, as a formatter of pygal's."""

    def title(value: object, index: int) -> str:
        return texts[index]

    return title


def picture(chart: Any, looks: Sequence[Look], **attributes: object) -> Markup:
    """A chart of pygal's.

    Args:
        looks: of its series, in their order.
        attributes: of the <svg>, as `element` takes them.
    """
    root = chart.render_tree()
    box = root.get("viewBox")
    return element("svg", *_children(root, looks), **{"viewBox": box, "role": "img", "cls": "chart", **attributes})


def chart_style() -> str:
    """The style sheet of charts, with the colours of pages."""
    return _STYLE.read_text(encoding="utf-8")


def svg_file(panels: Sequence[Markup], widths: Sequence[float], height: float) -> str:
    """The text of an SVG file that needs nothing else: pictures of one height beside each other, on white.

    Args:
        panels: what `picture` made, of another class than `chart`, to which a page gives the width of its column.
        widths: of the panels.
    """
    whole = sum(widths)
    places = [sum(widths[:index]) for index in range(len(widths))]
    placed = [element("g", panel, transform=f"translate({x:g}, 0)") for x, panel in zip(places, panels, strict=True)]
    svg = element(
        "svg",
        element("style", raw(chart_style())),
        element("rect", width=f"{whole:g}", height=f"{height:g}", fill="#fff"),
        *placed,
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {whole:g} {height:g}",
        width=f"{whole:g}",
        height=f"{height:g}",
        cls="chart",
        style="font-family: system-ui, 'Noto Sans CJK SC', sans-serif; max-width: 100%; height: auto",
    )
    return f"{svg}\n"


def _children(node: Any, looks: Sequence[Look]) -> list[Markup]:
    # The tag of a comment is a function.
    return [kept for child in node if isinstance(child.tag, str) and (kept := _kept(child, looks))]


def _kept(node: Any, looks: Sequence[Look]) -> Markup:
    """A node without what only pygal's own script and style sheet know; empty if nothing is left."""
    tag, classes = node.tag.rpartition("}")[2], (node.get("class") or "").split()
    if tag in _DROPPED_TAGS or _DROPPED_CLASSES & set(classes):
        return Markup()
    if tag == "desc":
        # The text for the pointer. A script would show it; a browser shows a title.
        return element("title", node.text) if "value" in classes and node.text else Markup()
    children = _children(node, looks)
    if tag == "text":
        children = [joined(node.text)] if node.text else []
    if tag in ("g", "text") and not children:
        return Markup()
    given: dict[str, object] = {name: _short(node.get(name)) for name in _ATTRIBUTES if node.get(name)}
    if kept := [name for name in classes if name in _CLASSES]:
        given["cls"] = " ".join(kept)
    for name in classes:
        if name.startswith("serie-"):
            given["style"] = looks[int(name.removeprefix("serie-"))].style
    # A title is of the element around it: a shape keeps its group, or all of a series would have the first title.
    if tag == "g" and not given and not any(child.tag.endswith("desc") for child in node if isinstance(child.tag, str)):
        return joined(*children)
    return element(tag, *children, **given)


def _short(value: str) -> str:
    """Coordinates to a tenth of a unit."""
    return _DIGITS.sub(lambda found: f"{float(found[0]):.1f}".removesuffix(".0"), value)
