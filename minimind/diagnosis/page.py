"""The report as one HTML page that needs no other file.

ReportedRun of each run, languages -> page -> text of report.html; in two languages with a switch at its top
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from minimind.diagnosis import pair_sections, sections
from minimind.diagnosis.language import CHINESE, ENGLISH, Language
from minimind.diagnosis.metric_charts import charts
from minimind.diagnosis.reported import ReportedRun
from minimind.pages.markup import Markup, element
from minimind.pages.parts import document, section, tiles

_NAMES = {ENGLISH: "English", CHINESE: "中文"}
LANGUAGES = tuple(_NAMES)


def page(runs: Sequence[ReportedRun], languages: Sequence[str] = LANGUAGES) -> str:
    """The whole page.

    Args:
        runs: at least one.
        languages: of LANGUAGES; the first is shown when the page is opened.
    """
    title = Language(languages[0])("After training: {names}", names=", ".join(run.files.name for run in runs))
    bodies = [element("main", *_body(runs, Language(code)), lang=code) for code in languages]
    switch = [_switch(languages)] if len(languages) > 1 else []
    return document(title, *switch, *bodies, lang=languages[0])


def _switch(languages: Sequence[str]) -> Markup:
    keys = []
    for number, code in enumerate(languages):
        checked = "" if number == 0 else None
        button = element("input", type="radio", name="lang", id=f"lang-{code}", checked=checked)
        keys.append(element("label", button, f" {_NAMES[code]}", lang=code))
    return element("nav", *keys, cls="switch")


def _body(runs: Sequence[ReportedRun], say: Language) -> Iterator[Markup]:
    yield element("h1", say("After training"))
    yield element("p", ", ".join(str(run.files.folder) for run in runs), cls="soft")
    if len(runs) > 1:
        yield section(say("Side by side"), sections.comparison(runs, say))
    else:
        yield tiles(sections.figures(runs[0].files, say))
    figures = element("div", *charts([run.files for run in runs], say), cls="figures")
    parts = [_run(run, say, several=len(runs) > 1) for run in runs]
    # What the guard has found comes before the curves.
    yield from (next(part) for part in parts)
    yield section(say("Curves"), [figures])
    for part in parts:
        yield from part


def _run(run: ReportedRun, say: Language, *, several: bool) -> Iterator[Markup]:
    """The sections of one run; the guard's first."""

    def titled(title: str, content: Iterator[Markup]) -> Markup:
        return section(f"{say(title)}: {run.files.name}" if several else say(title), content)

    yield titled("What the guard has found", sections.findings(run.files, say))
    if run.pairs is None:
        yield titled("Single pairs", pair_sections.without_ledger(run, say))
    else:
        yield titled("Margin against length", pair_sections.length(run.pairs, say))
        yield titled("Accuracy by group", pair_sections.groups(run.pairs, say))
        yield titled("Single pairs", pair_sections.lists(run.pairs, say))
    yield titled("Answers before and after", sections.answers(run.files, say))
    yield titled("What exports kept", sections.exports(run.files, say))
    yield titled("Speed and cost", sections.cost(run.files, say))
    yield titled("What ran", sections.settings(run.files, say))
