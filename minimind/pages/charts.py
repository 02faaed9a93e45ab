"""Charts as inline SVG: histograms and stacked bars.

numbers -> histogram, bars -> Markup, as wide as the page lets it be
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

from minimind.pages.markup import Markup, element, joined
from minimind.pages.svg import WIDTH, legend, number, svg, text

_HEIGHT = 180
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 24, 12, 40
_BAR_HEIGHT, _BAR_GAP, _LABEL_WIDTH = 22, 10, 130
# A tick stands at about so many places of an axis.
_TICKS = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Histogram:
    """Counts of numbers in bins of one width, from the first edge on.

    Attributes:
        start, width: the first edge, and the width of a bin.
        counts: of each bin; the first also has everything below, the last everything above.
        whole: all numbers are whole.
    """

    start: float
    width: float
    counts: tuple[int, ...]
    whole: bool = True


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
    step = (WIDTH - _LEFT - _RIGHT) / bars
    floor = _HEIGHT - _BOTTOM

    def x(bar: float) -> float:
        return _LEFT + bar * step

    def y(count: float) -> float:
        return floor - (floor - _TOP) * count / highest

    drawn = [
        element(
            "rect",
            element("title", f"{_bin_name(one.histogram, bar, open_start)} {axis}: {count} {one.name}"),
            x=number(x(bar)),
            y=number(y(count)),
            width=number(max(step - 1, 0.5)),
            height=number(floor - y(count)),
            fill=one.colour,
            fill_opacity=0.55 if len(series) > 1 else 1,
        )
        for one in series
        for bar, count in enumerate(one.histogram.counts)
        if count
    ]
    every = -(-bars // _TICKS)
    ticks = [text(x(bar), floor + 16, _edge(first, bar), anchor="middle") for bar in range(0, bars + 1, every)]
    lines = [
        text(_LEFT - 6, y(highest) + 4, str(highest), anchor="end"),
        text(_LEFT - 6, floor + 4, "0", anchor="end"),
    ]
    baseline = element("line", x1=_LEFT, x2=WIDTH - _RIGHT, y1=floor, y2=floor, cls="axis")
    name = text((_LEFT + WIDTH - _RIGHT) / 2, _HEIGHT - 6, axis, anchor="middle")
    return joined(
        legend([(one.name, one.colour) for one in series]), svg(_HEIGHT, *drawn, baseline, *ticks, *lines, name)
    )


def bars(rows: Sequence[Bar]) -> Markup:
    """Horizontal bars; all have the length of the largest sum."""
    whole = max(sum(part.value for part in row.parts) for row in rows) or 1
    room = WIDTH - _LABEL_WIDTH - 150
    drawn: list[Markup] = []
    for index, row in enumerate(rows):
        top = index * (_BAR_HEIGHT + _BAR_GAP)
        drawn.append(text(_LABEL_WIDTH - 8, top + 15, row.label, anchor="end"))
        starts = itertools.accumulate((part.value for part in row.parts), initial=0.0)
        for start, part in zip(starts, row.parts, strict=False):
            drawn.append(
                element(
                    "rect",
                    element("title", f"{row.label}, {part.name}: {part.value:g}"),
                    x=number(_LABEL_WIDTH + room * start / whole),
                    y=top,
                    width=number(room * part.value / whole),
                    height=_BAR_HEIGHT,
                    fill=part.colour,
                )
            )
        end = _LABEL_WIDTH + room * sum(part.value for part in row.parts) / whole
        drawn.append(text(end + 8, top + 15, row.note))
    names = dict.fromkeys((part.name, part.colour) for row in rows for part in row.parts)
    return joined(legend(list(names)), svg(len(rows) * (_BAR_HEIGHT + _BAR_GAP), *drawn))


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
