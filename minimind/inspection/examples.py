"""The last section of the page: some items as the run sees them, with the tokens that count marked.

Report -> examples -> Markup
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from minimind.inspection.items import ItemKind
from minimind.inspection.report import Report
from minimind.inspection.texts import ItemTexts, Run
from minimind.pages.markup import Markup, element, joined
from minimind.pages.words import count


def examples(report: Report) -> Iterator[Markup]:
    """Items as they will be trained on."""
    kind = report.kind
    yield element(
        "p",
        f"{kind.rendered}, cut to the limit of the run. The loss counts the tokens that are marked: ",
        element("mark", kind.halves[0]),
        *(joined(" ", element("mark", half, cls=_mark(half))) for half in kind.halves[1:]),
        ".",
    )
    for number, one in enumerate(report.examples):
        yield _example(one, kind, is_open=number == 0)


def _example(one: ItemTexts, kind: ItemKind, *, is_open: bool) -> Markup:
    first, *others = one.tokens.items()
    tokens = [f"{count(first[1])} tokens{f' {first[0]}' if kind.has_two else ''}"]
    title = f"{one.place}: {', '.join([*tokens, *(f'{count(number)} {name}' for name, number in others)])}"
    halves = {name: element("div", *_runs(runs, _mark(name)), cls="text") for name, runs in one.parts.items()}
    if not kind.has_two:
        return element("details", element("summary", title), *halves.values(), open="" if is_open else None)
    prompt = joined(element("h3", "Prompt, in both rows"), halves.pop("prompt"))
    columns = [element("div", element("h3", name.capitalize()), text) for name, text in halves.items()]
    content = element("div", prompt, element("div", *columns, cls="columns"))
    return element("details", element("summary", title), content, open="" if is_open else None)


def _mark(half: str) -> str | None:
    """The class of what counts."""
    return half if half == "rejected" else None


def _runs(runs: Sequence[Run], mark: str | None) -> Iterator[Markup]:
    for run in runs:
        yield element("mark", run.text, cls=mark) if run.counts else joined(run.text)
