"""Plots of points as inline SVG: lines over steps, and clouds of pairs.

points -> lines, cloud -> Markup, as wide as the page lets it be
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from minimind.pages.drawing import Look, picture, settings
from minimind.pages.markup import Markup, element, joined
from minimind.pages.parts import axis_name, legend

_HEIGHT = 180
_TICKS = 6
# Points that a line keeps: more would be closer together than a pixel.
_MOST = 400

Points = Sequence[tuple[float, float]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PointSeries:
    """Points with a name and a colour.

    Attributes:
        points: of finite numbers.
        pale: drawn thin, as the background of others.
    """

    name: str
    colour: str
    points: Points
    pale: bool = False


def lines(series: Sequence[PointSeries], axis: str) -> Markup:
    """Lines over the same steps, below their names and last values.

    Args:
        series: at least one, each with at least one point.
        axis: what the numbers below are.
    """
    chart = _chart(series)
    for one in series:
        # A line of one point would not be seen.
        chart.add(one.name, _thinned(one.points), show_dots=len(one.points) == 1)
    looks = [Look(colour=one.colour, stroke=1.3 if one.pale else 2.2) for one in series]
    last = [f"{one.name}: {_value(one.points[-1][1])}" for one in series]
    names = legend([(text, one.colour) for text, one in zip(last, series, strict=True)], least=1)
    return joined(names, picture(chart, looks, aria_label="; ".join(last)), axis_name(axis))


def cloud(series: Sequence[PointSeries], x_axis: str, y_axis: str) -> Markup:
    """A dot for each point; lines where an axis is 0."""
    chart = _chart(series, stroke=False)
    for one in series:
        chart.add(one.name, one.points)
    looks = [Look(colour=one.colour, opacity=0.55) for one in series]
    drawn = picture(chart, looks, aria_label=f"{y_axis}, {x_axis}", cls="chart cloud")
    above = element("div", y_axis, cls="legend")
    return joined(legend([(one.name, one.colour) for one in series]), above, drawn, axis_name(x_axis))


def ticks(low: float, high: float) -> list[float]:
    """Round numbers within a range, about `_TICKS` of them: multiples of 1, 2 or 5 times a power of ten."""
    rough = (high - low) / _TICKS
    power = 10 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(number * step, 12) for number in range(first, math.floor(high / step + 1e-9) + 1)]


def _chart(series: Sequence[PointSeries], **options: object) -> Any:
    """pygal's chart with the axes of some points, still without them; below are whole numbers."""
    import pygal

    points = [point for one in series for point in one.points]
    left, right = _range([x for x, _ in points], 0.0)
    low, high = _range([y for _, y in points], 0.05)
    return pygal.XY(
        **settings(_HEIGHT),
        xrange=(left, right),
        range=(low, high),
        x_labels=[tick for tick in ticks(left, right) if tick == round(tick)],
        # pygal's own steps are 1, 2, 4, 8.
        y_labels=ticks(low, high),
        x_value_formatter=_value,
        value_formatter=_value,
        dots_size=2.4,
        # Nothing is said of single dots.
        formatter=lambda _: "",
        **options,
    )


def _range(values: Sequence[float], margin: float) -> tuple[float, float]:
    low, high = min(values), max(values)
    if high - low <= 1e-9 * max(abs(low), abs(high), 1e-12):
        room = abs(low) / 2 or 0.5
        return low - room, high + room
    return low - margin * (high - low), high + margin * (high - low)


def _thinned(points: Points) -> Points:
    """At most `_MOST` points: means of neighbours, and the last point as it is."""
    size = -(-len(points) // _MOST)
    if size <= 1:
        return points
    groups = [points[start : start + size] for start in range(0, len(points) - 1, size)]
    means = [(sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group)) for group in groups]
    return [*means, points[-1]]


def _value(value: float) -> str:
    if abs(value) >= 10_000 and value == round(value):
        return f"{value:,.0f}"
    if 0 < abs(value) < 1e-3:
        mantissa, exponent = f"{value:.3e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return f"{value:.4g}"
