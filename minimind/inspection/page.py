"""The report as one HTML page that needs no other file.

Report -> page -> text of report.html
"""

from __future__ import annotations

from collections.abc import Sequence

from minimind.inspection import sections
from minimind.inspection.examples import examples
from minimind.inspection.report import Report
from minimind.pages.markup import element
from minimind.pages.parts import document, section, tiles
from minimind.pages.words import count, gib, share


def page(report: Report) -> str:
    """The whole page."""
    kind = report.kind
    title = f"{kind.title} before training"
    names = ", ".join(source.name for source in report.sources)
    body = element(
        "main",
        element("h1", title),
        element("p", names, cls="soft"),
        tiles(_figures(report)),
        section("To look at", sections.findings(report)),
        section("Rows", sections.rows(report)),
        section("Lengths", sections.lengths(report)),
        *([section("Length bias", sections.bias(report.bias))] if report.bias else []),
        *([section("Scores", sections.scores(report.scores))] if report.scores else []),
        section(f"Equal {kind.items}", sections.equal_pairs(report)),
        section(kind.answers.capitalize(), sections.answers(report)),
        section("Packing and cost", sections.cost(report)),
        section(f"{kind.items.capitalize()} as the run sees them", examples(report)),
        section("The run", [element("pre", report.command, cls="command")]),
    )
    return document(title, body)


def _figures(report: Report) -> Sequence[tuple[str, str]]:
    cost, memory, kind = report.cost, report.cost.memory, report.kind
    return [
        (count(report.rows), kind.rows),
        (count(report.pairs), f"{kind.batch_of} to train on"),
        (count(report.eval_pairs), f"held-out {kind.batch_of}"),
        (count(cost.steps), f"steps of {cost.global_batch} {kind.batch_of}"),
        (count(cost.tokens), "tokens to train on"),
        *([(share(report.bias.rule), "right by “longer wins”")] if report.bias else []),
        (f"{gib(memory.peak)} GiB" if memory else "-", "planned memory of a rank"),
    ]
