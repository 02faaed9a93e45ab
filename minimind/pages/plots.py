"""Plots of points as inline SVG: lines over steps, and clouds of pairs.

points -> lines, cloud -> Markup, as wide as the page lets it be
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from minimind.pages.markup import Markup, element, joined
from minimind.pages.svg import WIDTH, legend, number, svg, text

_HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 240, 76, 18, 10, 54
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Frame:
    """The ranges of both axes."""

    left: float
    right: float
    low: float
    high: float

    def x(self, value: float) -> float:
        return _LEFT + (WIDTH - _LEFT - _RIGHT) * (value - self.left) / (self.right - self.left)

    def y(self, value: float) -> float:
        return _HEIGHT - _BOTTOM - (_HEIGHT - _BOTTOM - _TOP) * (value - self.low) / (self.high - self.low)


def lines(series: Sequence[PointSeries], axis: str) -> Markup:
    """Lines over the same steps.

    Args:
        series: at least one, each with at least one point.
        axis: what the numbers below are.
    """
    series = [dataclasses.replace(one, points=_thinned(one.points)) for one in series]
    frame = _frame(series)
    drawn = []
    for one in series:
        places = " ".join(f"{number(frame.x(x))},{number(frame.y(y))}" for x, y in one.points)
        title = element("title", f"{one.name}: {_value(one.points[-1][1])}")
        width = 1.2 if one.pale else 2.2
        drawn.append(element("polyline", title, points=places, fill="none", stroke=one.colour, stroke_width=width))
        if len(one.points) == 1:
            (x, y) = one.points[0]
            drawn.append(_dot(frame.x(x), frame.y(y), one.colour, 3))
    return joined(_legend(series), svg(_HEIGHT, *_axes(frame, axis), *drawn))


def cloud(series: Sequence[PointSeries], x_axis: str, y_axis: str) -> Markup:
    """A dot for each point; lines where an axis is 0."""
    frame = _frame(series)
    zeros = []
    if frame.left < 0 < frame.right:
        x = number(frame.x(0))
        zeros.append(element("line", x1=x, x2=x, y1=_TOP, y2=_HEIGHT - _BOTTOM, cls="axis"))
    if frame.low < 0 < frame.high:
        y = number(frame.y(0))
        zeros.append(element("line", x1=_LEFT, x2=WIDTH - _RIGHT, y1=y, y2=y, cls="axis"))
    dots = [_dot(frame.x(x), frame.y(y), one.colour, 2.4) for one in series for x, y in one.points]
    name = element("div", y_axis, cls="legend")
    return joined(_legend(series), name, svg(_HEIGHT, *_axes(frame, x_axis), *zeros, *dots))


def _dot(x: float, y: float, colour: str, radius: float) -> Markup:
    return element("circle", cx=number(x), cy=number(y), r=radius, fill=colour, fill_opacity=0.55)


def _legend(series: Sequence[PointSeries]) -> Markup:
    return legend([(one.name, one.colour) for one in series])


def _axes(frame: _Frame, axis: str) -> list[Markup]:
    floor = _HEIGHT - _BOTTOM
    drawn = [element("line", x1=_LEFT, x2=WIDTH - _RIGHT, y1=floor, y2=floor, cls="axis")]
    for value in ticks(frame.low, frame.high):
        y = frame.y(value)
        drawn.append(element("line", x1=_LEFT, x2=WIDTH - _RIGHT, y1=number(y), y2=number(y), cls="grid"))
        drawn.append(text(_LEFT - 6, y + 4, _value(value), anchor="end"))
    for value in ticks(frame.left, frame.right):
        drawn.append(text(frame.x(value), floor + 21, _value(value), anchor="middle"))
    return [*drawn, text((_LEFT + WIDTH - _RIGHT) / 2, _HEIGHT - 6, axis, anchor="middle")]


def ticks(low: float, high: float) -> list[float]:
    """Round numbers within a range, about `_TICKS` of them: multiples of 1, 2 or 5 times a power of ten."""
    rough = (high - low) / _TICKS
    power = 10 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(number * step, 12) for number in range(first, math.floor(high / step + 1e-9) + 1)]


def _frame(series: Sequence[PointSeries]) -> _Frame:
    points = [point for one in series for point in one.points]
    left, right = _range([x for x, _ in points], 0.0)
    low, high = _range([y for _, y in points], 0.05)
    return _Frame(left=left, right=right, low=low, high=high)


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
