"""The sections of the report about single pairs: margin against length, accuracy by group, and the three lists.

ReportedRun, Language -> one function for each section -> Markup of its content
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from minimind.diagnosis.analysis import HARDEST, LISTED, MOVED, SUSPICIOUS, Group, ListedPair, PairAnalysis
from minimind.diagnosis.language import Language
from minimind.diagnosis.ledger import TRAIN
from minimind.diagnosis.reported import ReportedRun
from minimind.diagnosis.sections import texts, value
from minimind.diagnosis.texts import prompt_of, written
from minimind.pages.charts import Bar, Part, bars
from minimind.pages.drawing import BLUE, GREEN, GREY
from minimind.pages.markup import Markup, element
from minimind.pages.parts import note, table
from minimind.pages.plots import PointSeries, cloud
from minimind.pages.words import count, share

_RIGHT, _WRONG, _DOT = GREEN, GREY, BLUE
_GROUPS = {
    "prompt": "By length of the prompt, in tokens",
    "answer": "By length of the longer answer, in tokens",
    "source": "By source",
    "language": "By language of the answer (its script)",
}
_LISTS = {
    SUSPICIOUS: (
        "The most suspicious pairs",
        "Over all times that it met the pair, the policy prefers the rejected answer: the label may be wrong. "
        "--suspects writes all such pairs into a file.",
    ),
    HARDEST: ("The hardest pairs", "The largest losses when they were met last."),
    MOVED: (
        "The pairs that moved most",
        "By how many nats a token of both answers has moved away from the reference, or from the first time.",
    ),
}


def without_ledger(run: ReportedRun, say: Language) -> Iterator[Markup]:
    """Why there is nothing about single pairs."""
    if run.files.rows is None and run.files.settings.get("ledger", {}).get("value"):
        yield note(say("This run ended before it wrote a pair into its ledger."))
    elif run.files.rows is None:
        yield note(say("Train with --ledger 1 to see single pairs here."))
    else:
        yield note(say("The loss of this run has no margins, so its pairs cannot be judged."))


def _judged(pairs: PairAnalysis, say: Language) -> str:
    if pairs.judged == (TRAIN,):
        return say("{pairs} training pairs, each when it was met last.", pairs=count(pairs.pairs))
    return say("{pairs} held-out pairs, evaluated at step {step}.", pairs=count(pairs.pairs), step=pairs.step)


def length(pairs: PairAnalysis, say: Language) -> Iterator[Markup]:
    """Margins against the difference of lengths."""
    yield note(_judged(pairs, say))
    if math.isfinite(pairs.correlation):
        text = say(
            "The margin correlates by {correlation} with how much longer the chosen answer is. Near +1 or -1 the "
            "policy has learnt the length.",
            correlation=f"{pairs.correlation:+.2f}",
        )
        yield element("p", text)
    dots = [PointSeries(name=say("pairs"), colour=_DOT, points=pairs.dots)]
    yield element("figure", cloud(dots, say("tokens of chosen minus tokens of rejected"), say("margin of a pair")))


def groups(pairs: PairAnalysis, say: Language) -> Iterator[Markup]:
    """Accuracy by length, source and language."""
    yield note(_judged(pairs, say))
    figures = [
        element("figure", element("figcaption", say(title)), _bars(pairs.groups[key], say, named=key == "language"))
        for key, title in _GROUPS.items()
        if pairs.groups.get(key)
    ]
    yield element("div", *figures, cls="figures")


def _bars(some: Sequence[Group], say: Language, *, named: bool) -> Markup:
    """Bars of groups; `named` ones have names of scripts, which are words of a language."""
    return bars(
        [
            Bar(
                label=say(one.name) if named else _short(one.name),
                parts=(
                    Part(name=say("ranked rightly"), colour=_RIGHT, value=one.accuracy),
                    Part(name=say("wrongly"), colour=_WRONG, value=1 - one.accuracy),
                ),
                note=say("{accuracy} of {pairs}", accuracy=share(one.accuracy), pairs=count(one.pairs)),
            )
            for one in some
        ]
    )


def _short(name: str) -> str:
    """A name as long as its place: of a path the file, of a long name its end."""
    name = name.rpartition("/")[2] or name
    return name if len(name) <= 16 else f"…{name[-15:]}"


def lists(pairs: PairAnalysis, say: Language) -> Iterator[Markup]:
    """The three lists of single pairs, each with its place and its texts."""
    kind = say("training pairs") if pairs.listed_set == TRAIN else say("held-out pairs")
    yield note(say("Up to {number} {kind} of each kind.", number=LISTED, kind=kind))
    for problem in pairs.obstacles:
        yield note(say("Texts cannot be shown: {problem}.", problem=say(problem.reason, **problem.values)))
    for key, (title, meaning) in _LISTS.items():
        yield element("h3", say(title))
        yield note(say(meaning))
        found = pairs.lists[key]
        if not found:
            yield element("p", say("None."))
        for one in found:
            yield _listed(one, say)


def _listed(one: ListedPair, say: Language) -> Markup:
    of_line = {"source": one.source, "line": one.line}
    place = say("{source}, line {line}", **of_line) if one.unit == "line" else say("{source}, row {line}", **of_line)
    head = say("{place}: margin {margin}, times met: {times}", place=place, margin=value(one.margin), times=one.times)
    numbers = table(
        [
            f"#{say('margin at first')}",
            f"#{say('margin')}",
            f"#{say('loss')}",
            f"#{say('confidence')}",
            f"#{say('moved')}",
        ],
        [[value(number) for number in (one.before, one.margin, one.loss, one.confidence, one.moved)]],
    )
    content = [numbers]
    if one.row is not None:
        shared = prompt_of(one.row)
        content.append(texts(say("Prompt"), written(shared)))
        halves = [
            element("div", texts(title, written(messages[len(shared) :])))
            for title, messages in ((say("Chosen"), one.row.chosen), (say("Rejected"), one.row.rejected))
        ]
        content.append(element("div", *halves, cls="columns"))
    return element("details", element("summary", head), element("div", *content))
