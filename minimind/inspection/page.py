"""The report as one HTML page that needs no other file.

Report -> page -> text of report.html
"""

from __future__ import annotations

from collections.abc import Sequence

from minimind.inspection import sections
from minimind.inspection.report import Report
from minimind.pages.markup import element
from minimind.pages.parts import document, section, tiles
from minimind.pages.words import count, gib, share


def page(report: Report) -> str:
    """The whole page."""
    title = "Preference data before training"
    names = ", ".join(source.name for source in report.sources)
    body = element(
        "main",
        element("h1", title),
        element("p", names, cls="soft"),
        tiles(_figures(report)),
        section("To look at", sections.findings(report)),
        section("Rows", sections.rows(report)),
        section("Lengths", sections.lengths(report)),
        section("Length bias", sections.bias(report)),
        *([section("Scores", sections.scores(report.scores))] if report.scores else []),
        section("Equal pairs", sections.equal_pairs(report)),
        section("Answers", sections.answers(report)),
        section("Packing and cost", sections.cost(report)),
        section("Pairs as the run sees them", sections.examples(report)),
        section("The run", [element("pre", report.command, cls="command")]),
    )
    return document(title, body)


def _figures(report: Report) -> Sequence[tuple[str, str]]:
    cost, memory = report.cost, report.cost.memory
    return [
        (count(report.rows), "rows"),
        (count(report.pairs), "pairs to train on"),
        (count(report.eval_pairs), "held-out pairs"),
        (count(cost.steps), f"steps of {cost.global_batch} pairs"),
        (count(cost.tokens), "tokens to train on"),
        (share(report.bias.rule), "right by “longer wins”"),
        (f"{gib(memory.peak)} GiB" if memory else "-", "planned memory of a rank"),
    ]
