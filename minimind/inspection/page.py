"""The report as one HTML page that needs no other file.

Report -> page -> text of report.html
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from minimind.inspection import sections
from minimind.inspection.markup import Markup, element, raw
from minimind.inspection.report import Report
from minimind.inspection.words import count, gib, share

_STYLE = Path(__file__).with_name("page.css")


def page(report: Report) -> str:
    """The whole page."""
    title = "Preference data before training"
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", title),
        element("style", raw(_STYLE.read_text(encoding="utf-8"))),
    )
    names = ", ".join(source.name for source in report.sources)
    body = element(
        "main",
        element("h1", title),
        element("p", names, cls="soft"),
        _tiles(report),
        _section("To look at", sections.findings(report)),
        _section("Rows", sections.rows(report)),
        _section("Lengths", sections.lengths(report)),
        _section("Length bias", sections.bias(report)),
        *([_section("Scores", sections.scores(report.scores))] if report.scores else []),
        _section("Equal pairs", sections.equal_pairs(report)),
        _section("Answers", sections.answers(report)),
        _section("Packing and cost", sections.cost(report)),
        _section("Pairs as the run sees them", sections.examples(report)),
        _section("The run", [element("pre", report.command, cls="command")]),
    )
    return "<!doctype html>\n" + element("html", head, element("body", body), lang="en") + "\n"


def _section(title: str, content: Iterable[Markup]) -> Markup:
    return element("section", element("h2", title), *content)


def _tiles(report: Report) -> Markup:
    cost, memory = report.cost, report.cost.memory
    tiles: Sequence[tuple[str, str]] = [
        (count(report.rows), "rows"),
        (count(report.pairs), "pairs to train on"),
        (count(report.eval_pairs), "held-out pairs"),
        (count(cost.steps), f"steps of {cost.global_batch} pairs"),
        (count(cost.tokens), "tokens to train on"),
        (share(report.bias.rule), "right by “longer wins”"),
        (f"{gib(memory.peak)} GiB" if memory else "-", "planned memory of a rank"),
    ]
    return element(
        "div", *(element("div", element("b", value), name, cls="tile") for value, name in tiles), cls="tiles"
    )
