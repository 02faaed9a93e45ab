"""The results of a sweep as one picture: bars of accuracy, margin and loss for each combination.

list of RunResult -> sweep_svg -> text of an SVG file, which needs nothing else
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence

from minimind.pages.drawing import BLUE, GREEN, VERMILION, Look, picture, settings, svg_file, titles
from minimind.pages.markup import Markup
from minimind.sweep.results import RunResult, metrics_of
from minimind.sweep.table import best_first

# Units of the picture: a bar with its gap, what is above and below all bars, the longest bar, a letter of a label.
_ROW, _AROUND, _PLOT, _LETTER = 28, 64, 240, 7.2
# A Chinese letter is that much wider than pygal takes each letter to be.
_WIDER = 4.8
_COLOURS = (BLUE, GREEN, VERMILION)


def sweep_svg(results: Sequence[RunResult]) -> str:
    """The picture, the best run at the top. Runs that are not finished are pale, and say how they are."""
    ordered, metrics = best_first(results), metrics_of(results[0].plan)
    kind = "held-out" if all(one.held_out for one in ordered if one.metrics) else "logged"
    height = _ROW * len(ordered) + _AROUND
    panels, widths = [], []
    for number, (metric, colour) in enumerate(zip(metrics, _COLOURS, strict=True)):
        # The names of the runs stand at the first panel alone: a row is one run.
        labels = [_value(one, metric) if number else f"{_name(one)}: {_value(one, metric)}" for one in ordered]
        width = _PLOT + _LETTER * max(map(len, labels))
        widths.append(width + _WIDER * max(map(_wide, labels)))
        panels.append(_panel(ordered, metric, f"{metric}, {kind}", labels, Look(colour=colour), widths[-1], height))
    return svg_file(panels, widths, height)


def _panel(
    results: Sequence[RunResult],
    metric: str,
    title: str,
    labels: Sequence[str],
    look: Look,
    width: float,
    height: float,
) -> Markup:
    """Bars of one metric from its zero; below 0 they go to the left."""
    import pygal

    values = [_number(result, metric) for result in results]
    known = [value for value in values if value is not None]
    # Accuracies end at 1, whatever was reached.
    high = 1.0 if metric in ("rewards/accuracies", "token_accuracy") else max([0.0, *known])
    low = min([0.0, *known])
    # The first row of a horizontal chart is its lowest.
    chart = pygal.HorizontalStackedBar(
        **{**settings(height), "width": width, "margin_left": _WIDER * max(map(_wide, labels))},
        title=title,
        range=(low, high if high > low else low + 1),
        x_labels=labels[::-1],
        y_labels=[0.0],
        value_formatter=lambda _: "0",
    )
    bars = list(zip(values, results, strict=True))[::-1]
    for finished in (True, False):
        drawn = [value if one.finished == finished else None for value, one in bars]
        texts = [f"{one.plan.name}, {metric}: {_value(one, metric)}" for _, one in bars]
        texts = ["" if value is None else text for value, text in zip(drawn, texts, strict=True)]
        chart.add(str(finished), drawn, formatter=titles(texts))
    looks = [look, Look(colour=look.colour, opacity=0.35)]
    return picture(chart, looks, width=f"{width:g}", height=f"{height:g}", aria_label=title, cls="across")


def _name(result: RunResult) -> str:
    """What differs, and how the run is unless it is finished."""
    name = ", ".join(f"{flag} {value}" for flag, value in result.plan.differing.items()) or "run"
    return name if result.finished else f"{name} ({result.status})"


def _value(result: RunResult, metric: str) -> str:
    return f"{result.metrics[metric]:.4g}" if metric in result.metrics else "-"


def _number(result: RunResult, metric: str) -> float | None:
    """What a bar can be drawn of: of a diverged run NaN may be all that there is."""
    value = result.metrics.get(metric, math.nan)
    return value if math.isfinite(value) else None


def _wide(text: str) -> int:
    """Letters as wide as they are high."""
    return sum(unicodedata.east_asian_width(letter) in "WF" for letter in text)
