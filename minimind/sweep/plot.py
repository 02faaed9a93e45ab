"""The results of a sweep as one picture: bars of accuracy, margin and loss for each combination.

list of RunResult -> sweep_svg -> text of an SVG file, which needs nothing else
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from minimind.pages.markup import Markup, element
from minimind.sweep.results import RunResult, metrics_of
from minimind.sweep.table import best_first

_BAR, _GAP, _TOP, _BOTTOM = 20, 8, 46, 12
_LETTER = 7.2  # width of a letter of the labels
_PANEL, _BETWEEN = 220, 84  # a panel's bars, and the room for the value behind them
_COLOURS = ("#2f6f9f", "#4f9d69", "#b9683a")


def sweep_svg(results: Sequence[RunResult]) -> str:
    """The picture, the best run at the top. Runs that are not finished are pale."""
    ordered, metrics = best_first(results), metrics_of(results[0].plan)
    labels = [", ".join(f"{name} {value}" for name, value in one.plan.differing.items()) or "run" for one in ordered]
    left = 24 + _LETTER * max(map(len, labels))
    width = left + len(metrics) * (_PANEL + _BETWEEN)
    height = _TOP + len(ordered) * (_BAR + _GAP) + _BOTTOM
    drawn: list[Markup] = [element("rect", width=_number(width), height=_number(height), fill="#fff")]
    for index, label in enumerate(labels):
        drawn.append(_text(left - 12, _middle(index), label, anchor="end"))
    kind = "held-out" if all(one.held_out for one in ordered if one.metrics) else "logged"
    for panel, (metric, colour) in enumerate(zip(metrics, _COLOURS, strict=True)):
        drawn += _panel(ordered, metric, f"{metric}, {kind}", colour, left + panel * (_PANEL + _BETWEEN))
    svg = element(
        "svg",
        *drawn,
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {_number(width)} {_number(height)}",
        width=_number(width),
        height=_number(height),
        font_family="system-ui, sans-serif",
        font_size=13,
        style="max-width: 100%; height: auto",
    )
    return f"{svg}\n"


def _panel(results: Sequence[RunResult], metric: str, title: str, colour: str, left: float) -> list[Markup]:
    """Bars of one metric from its zero; below 0 they go to the left."""
    values = [result.metrics.get(metric) for result in results]
    known = [value for value in values if value is not None and math.isfinite(value)]
    # Accuracies end at 1, whatever was reached.
    high = 1.0 if metric in ("rewards/accuracies", "token_accuracy") else max([0.0, *known])
    low = min([0.0, *known])
    scale = _PANEL / ((high - low) or 1.0)
    zero = left - low * scale
    bottom = _TOP + len(results) * (_BAR + _GAP) - _GAP / 2
    drawn = [
        _text(left, _TOP - 18, title, weight="600"),
        element("line", x1=_number(zero), x2=_number(zero), y1=_TOP - 6, y2=_number(bottom), stroke="#8a97a5"),
    ]
    for index, (result, value) in enumerate(zip(results, values, strict=True)):
        if value is None or not math.isfinite(value):
            drawn.append(_text(zero + 6, _middle(index), "-" if value is None else str(value)))
            continue
        bar = element(
            "rect",
            element("title", f"{result.plan.name}: {value:g}"),
            x=_number(zero + min(value, 0.0) * scale),
            y=_TOP + index * (_BAR + _GAP),
            width=_number(max(abs(value) * scale, 0.5)),
            height=_BAR,
            fill=colour,
            fill_opacity=1 if result.finished else 0.35,
        )
        drawn += [bar, _text(zero + max(value, 0.0) * scale + 6, _middle(index), f"{value:.4g}")]
    return drawn


def _middle(index: int) -> float:
    return _TOP + index * (_BAR + _GAP) + _BAR / 2 + 4.5


def _text(x: float, y: float, text: str, anchor: str = "start", weight: str | None = None) -> Markup:
    return element("text", text, x=_number(x), y=_number(y), text_anchor=anchor, font_weight=weight, fill="#1d2733")


def _number(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
