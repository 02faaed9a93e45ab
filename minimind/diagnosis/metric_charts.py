"""The curves of the report: one chart for each metric, with the lines of training and of every held-out set.

RunFiles of each run -> charts -> figures; with several runs a line for each of them
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

from minimind.diagnosis.language import Language
from minimind.diagnosis.run_files import RunFiles
from minimind.pages.drawing import BLUE, GREEN, ORANGE, PURPLE, SKY, VERMILION
from minimind.pages.markup import Markup, element
from minimind.pages.plots import PointSeries, lines

COLOURS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chart:
    """A chart of one or two metrics.

    Attributes:
        title: template of its name.
        metrics: without a prefix.
        held_out: evaluations have these metrics too.
    """

    title: str
    metrics: tuple[str, ...]
    held_out: bool = True


# In the order of the page; a chart without a value is left out.
CHARTS = (
    Chart(title="Loss", metrics=("loss",)),
    Chart(title="Accuracy: share of pairs ranked rightly", metrics=("rewards/accuracies",)),
    Chart(title="Margin of rewards", metrics=("rewards/margins",)),
    Chart(title="Rewards of chosen and rejected answers", metrics=("rewards/chosen", "rewards/rejected")),
    Chart(title="Negative log-likelihood of a token of chosen answers", metrics=("nll",)),
    Chart(title="Perplexity", metrics=("perplexity",)),
    Chart(title="Token accuracy", metrics=("token_accuracy",)),
    Chart(title="Entropy of the next token", metrics=("entropy",)),
    Chart(title="Gradient norm", metrics=("grad_norm",), held_out=False),
    Chart(title="Learning rate", metrics=("learning_rate",), held_out=False),
    Chart(title="Tokens per second", metrics=("tokens_per_second",), held_out=False),
)


def charts(runs: Sequence[RunFiles], say: Language) -> Iterator[Markup]:
    """The figures of all charts that have a value."""
    for chart in CHARTS:
        series = _of_one_run(chart, runs[0], say) if len(runs) == 1 else _of_runs(chart, runs, say)
        if series:
            caption = element("figcaption", say(chart.title))
            yield element("figure", caption, lines(series, say("global step")))


def _of_one_run(chart: Chart, run: RunFiles, say: Language) -> list[PointSeries]:
    found: list[PointSeries] = []
    for metric in chart.metrics:
        suffix = f", {_half(metric, say)}" if len(chart.metrics) > 1 else ""
        prefixes = ("", *run.sets) if chart.held_out else ("",)
        for prefix in prefixes:
            name = f"{_set_name(prefix, say)}{suffix}"
            if curve := run.curve(f"{prefix}{metric}"):
                colour = COLOURS[len(found) % len(COLOURS)]
                found.append(PointSeries(name=name, colour=colour, points=curve, pale=not prefix))
    return found


def _of_runs(chart: Chart, runs: Sequence[RunFiles], say: Language) -> list[PointSeries]:
    """A line for each run: of its first held-out set, where that has the metric."""
    found = []
    metric = chart.metrics[0]
    for number, run in enumerate(runs):
        held_out = run.curve(f"{run.sets[0]}{metric}") if run.sets and chart.held_out else []
        if curve := held_out or run.curve(metric):
            name = f"{run.name}, {_set_name('eval/' if held_out else '', say)}"
            if len(chart.metrics) > 1:
                name += f", {_half(metric, say)}"
            found.append(PointSeries(name=name, colour=COLOURS[number % len(COLOURS)], points=curve))
    return found


def _set_name(prefix: str, say: Language) -> str:
    name = prefix.removeprefix("eval/").rstrip("/")
    return (say("held out {name}", name=name) if name else say("held out")) if prefix else say("training")


def _half(metric: str, say: Language) -> str:
    return say("chosen") if metric.endswith("chosen") else say("rejected")
