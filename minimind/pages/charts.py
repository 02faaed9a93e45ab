"""Charts as inline SVG: histograms and stacked bars.

numbers -> histogram, bars -> Markup, as wide as the page lets it be
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from minimind.pages.drawing import WIDTH, Look, picture, settings, titles
from minimind.pages.markup import Markup, element, joined
from minimind.pages.parts import axis_name, legend
from minimind.pages.plots import ticks

_HEIGHT = 160
# Pixels of a row of bars; style.css has them too.
_ROW = 30
# A tick stands at about so many places of an axis.
_TICKS = 8
# pygal leaves so much of a chart free on each side.
_FREE = 0.02 / 1.04


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
    import pygal

    first = series[0].histogram
    number = len(first.counts)
    names = [_bin_name(first, bar, open_start) for bar in range(number)]
    edges = [first.start + bar * first.width for bar in range(number + 1)]
    every = -(-number // _TICKS)
    marks = [_edge(first, bar) if bar % every == 0 else "" for bar in range(number + 1)]
    highest = max(max(one.histogram.counts) for one in series) or 1
    chart = pygal.Histogram(
        **settings(_HEIGHT),
        x_labels=[{"value": edge, "label": mark} for edge, mark in zip(edges, marks, strict=True)],
        y_labels=[tick for tick in ticks(0, highest) if tick == round(tick)],
        value_formatter="{:,.0f}".format,
    )
    for one in series:
        counts = one.histogram.counts
        places = zip(counts, edges, edges[1:], strict=False)
        chart.add(
            one.name,
            [place if place[0] else None for place in places],
            formatter=titles([f"{name} {axis}: {count} {one.name}" for name, count in zip(names, counts, strict=True)]),
        )
    looks = [Look(colour=one.colour, opacity=0.55 if len(series) > 1 else 1) for one in series]
    label = f"{axis}: {', '.join(one.name for one in series)}"
    keys = legend([(one.name, one.colour) for one in series])
    return joined(keys, picture(chart, looks, aria_label=label), axis_name(axis))


def bars(rows: Sequence[Bar]) -> Markup:
    """Horizontal bars between their labels and notes. All have the length of the largest sum, and the same parts."""
    import pygal

    height = _ROW * len(rows)
    options = {**settings(height), "margin_top": 0, "margin_right": 0, "margin_bottom": 0}
    whole = max(sum(part.value for part in row.parts) for row in rows) or 1
    chart = pygal.HorizontalStackedBar(**options, range=(0, whole), show_x_labels=False, show_y_labels=False)
    for index, part in enumerate(rows[0].parts):
        # The first row of a horizontal chart is its lowest.
        titled = [
            (row.parts[index].value, f"{row.label}, {part.name}: {row.parts[index].value:g}") for row in rows[::-1]
        ]
        chart.add(part.name, [value for value, _ in titled], formatter=titles([title for _, title in titled]))
    # Without pygal's margins a row is as high as its label, and a bar begins at its left end.
    box = f"{WIDTH * _FREE:.2f} {height * _FREE:.2f} {WIDTH * (1 - 2 * _FREE):.2f} {height * (1 - 2 * _FREE):.2f}"
    drawn = picture(
        chart,
        [Look(colour=part.colour) for part in rows[0].parts],
        viewBox=box,
        preserveAspectRatio="none",
        style=f"height:{height}px",
        aria_hidden="true",
    )
    labels = element("div", *(element("div", row.label) for row in rows))
    notes = element("div", *(element("div", row.note) for row in rows))
    keys = legend([(part.name, part.colour) for part in rows[0].parts])
    return joined(keys, element("div", labels, drawn, notes, cls="bars"))


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
