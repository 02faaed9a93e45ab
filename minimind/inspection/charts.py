"""Charts as inline SVG: histograms and stacked bars.

numbers -> histogram, bars -> Markup, as wide as the page lets it be
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

from minimind.inspection.lengths import Histogram
from minimind.inspection.markup import Markup, element, joined

# Units of a chart's own coordinates; a unit is a pixel where the chart has its full width.
_WIDTH, _HEIGHT = 640, 180
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 24, 12, 40
_BAR_HEIGHT, _BAR_GAP, _LABEL_WIDTH = 22, 10, 130
# A tick stands at about so many places of an axis.
_TICKS = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Series:
    """A histogram with its name and colour in a chart."""

    name: str
    colour: str
    histogram: Histogram


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """A part of a stacked bar."""

    name: str
    colour: str
    value: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bar:
    """A stacked bar with its label, and a text behind it."""

    label: str
    parts: tuple[Part, ...]
    note: str = ""


def histogram(series: Sequence[Series], axis: str, *, open_start: bool = False) -> Markup:
    """Histograms with the same bins, drawn over each other.

    Args:
        axis: what the numbers below the bars are.
        open_start: the first bin has everything below it too, as the last one has everything above.
    """
    first = series[0].histogram
    bars = len(first.counts)
    highest = max(max(one.histogram.counts) for one in series) or 1
    step = (_WIDTH - _LEFT - _RIGHT) / bars
    floor = _HEIGHT - _BOTTOM

    def x(bar: float) -> float:
        return _LEFT + bar * step

    def y(count: float) -> float:
        return floor - (floor - _TOP) * count / highest

    drawn = [
        element(
            "rect",
            element("title", f"{_bin_name(one.histogram, bar, open_start)} {axis}: {count} {one.name}"),
            x=_number(x(bar)),
            y=_number(y(count)),
            width=_number(max(step - 1, 0.5)),
            height=_number(floor - y(count)),
            fill=one.colour,
            fill_opacity=0.55 if len(series) > 1 else 1,
        )
        for one in series
        for bar, count in enumerate(one.histogram.counts)
        if count
    ]
    every = -(-bars // _TICKS)
    ticks = [_text(x(bar), floor + 16, _edge(first, bar), anchor="middle") for bar in range(0, bars + 1, every)]
    lines = [
        _text(_LEFT - 6, y(highest) + 4, str(highest), anchor="end"),
        _text(_LEFT - 6, floor + 4, "0", anchor="end"),
    ]
    baseline = element("line", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=floor, y2=floor, cls="axis")
    name = _text((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 6, axis, anchor="middle")
    return joined(
        _legend([(one.name, one.colour) for one in series]), _svg(_HEIGHT, *drawn, baseline, *ticks, *lines, name)
    )


def bars(rows: Sequence[Bar]) -> Markup:
    """Horizontal bars; all have the length of the largest sum."""
    whole = max(sum(part.value for part in row.parts) for row in rows) or 1
    room = _WIDTH - _LABEL_WIDTH - 150
    drawn: list[Markup] = []
    for index, row in enumerate(rows):
        top = index * (_BAR_HEIGHT + _BAR_GAP)
        drawn.append(_text(_LABEL_WIDTH - 8, top + 15, row.label, anchor="end"))
        starts = itertools.accumulate((part.value for part in row.parts), initial=0.0)
        for start, part in zip(starts, row.parts, strict=False):
            drawn.append(
                element(
                    "rect",
                    element("title", f"{row.label}, {part.name}: {part.value:g}"),
                    x=_number(_LABEL_WIDTH + room * start / whole),
                    y=top,
                    width=_number(room * part.value / whole),
                    height=_BAR_HEIGHT,
                    fill=part.colour,
                )
            )
        end = _LABEL_WIDTH + room * sum(part.value for part in row.parts) / whole
        drawn.append(_text(end + 8, top + 15, row.note))
    names = dict.fromkeys((part.name, part.colour) for row in rows for part in row.parts)
    return joined(_legend(list(names)), _svg(len(rows) * (_BAR_HEIGHT + _BAR_GAP), *drawn))


def _legend(names: Sequence[tuple[str, str]]) -> Markup:
    if len(names) < 2:
        return Markup()
    keys = [element("span", element("i", style=f"background:{colour}"), name) for name, colour in names]
    return element("div", *keys, cls="legend")


def _bin_name(one: Histogram, bar: int, open_start: bool) -> str:
    low = _edge(one, bar)
    if bar == len(one.counts) - 1:
        return f"{low} and more"
    high = f"{one.start + (bar + 1) * one.width - 1:.0f}" if one.whole else _edge(one, bar + 1)
    if bar == 0 and open_start:
        return f"{high} and less" if one.whole else f"below {high}"
    return low if high == low else f"{low} to {high}"


def _edge(one: Histogram, bar: int) -> str:
    """Where a bin begins. Sums of a width such as 0.1 have digits that say nothing."""
    place = one.start + bar * one.width
    return f"{place:.0f}" if one.whole else f"{round(place / one.width) * one.width:.6g}"


def _svg(height: float, *children: Markup) -> Markup:
    return element("svg", *children, viewBox=f"0 0 {_WIDTH} {_number(height)}", role="img", cls="chart")


def _text(x: float, y: float, text: str, anchor: str = "start") -> Markup:
    return element("text", text, x=_number(x), y=_number(y), text_anchor=anchor)


def _number(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
