"""The report on the console: one screen.

Report -> console_text -> lines of text, with colours on a terminal
"""

from __future__ import annotations

import itertools
import textwrap
import unicodedata
from collections.abc import Iterator, Sequence

from minimind.data.selection import SKIP
from minimind.inspection.report import NOTE, Report
from minimind.inspection.sections import memory_text, time_text
from minimind.inspection.texts import Run
from minimind.pages.charts import Histogram
from minimind.pages.words import count, part, share

_WIDTH, _NAME = 110, 13
_BLOCKS = "▁▂▃▄▅▆▇█"
# Lines of the first item's prompt, and of each of its answers.
_TEXT_LINES = 3
# Columns and keys without use that are named.
_UNUSED = 5
_GREEN, _RED, _PLAIN = "\033[32m", "\033[31m", "\033[0m"


def console_text(report: Report, *, colours: bool) -> str:
    """The report as text.

    Args:
        colours: mark what counts in the first item by colours; otherwise by brackets.
    """
    lines: list[str] = []
    kind = report.kind
    first = "First pair" if kind.has_two else "First row"
    for name, section in (
        ("Rows", _rows(report)),
        ("Tokens", _lengths(report)),
        ("Limits", _limits(report)),
        ("Length bias", _bias(report)),
        ("Scores", _scores(report)),
        ("Equal pairs" if kind.has_two else "Equal rows", _equal(report)),
        (kind.answers.capitalize(), _answers(report)),
        ("The run", _run(report)),
        (first, _first_item(report, colours)),
        ("To look at", _findings(report)),
    ):
        for index, line in enumerate(section):
            # The lines of the item have colours of their own.
            line = line if name == first else "".join(map(_printable, line))
            lines.append(f"{name if index == 0 else '':<{_NAME}}{line}".rstrip())
    return "\n".join(lines)


def _rows(report: Report) -> Iterator[str]:
    for sources, note in ((report.sources, ""), (report.eval_sources, " (held out)")):
        for one in sources:
            shapes = ", ".join(one.shapes)
            # Ties, and scores that are too close: neither wrong nor used.
            unpaired = f"{count(one.unpaired)} without a pair, " if one.unpaired else ""
            yield (
                f"{one.name}{note}: {count(one.rows)} rows{f' ({shapes})' if shapes else ''}, "
                f"{count(one.refused_rows)} refused, {unpaired}{count(one.selected)} of {count(one.pairs)} "
                f"{report.kind.batch_of} used"
            )
            if one.unused:
                named = [f"{name} ({count(number)})" for name, number in itertools.islice(one.unused.items(), _UNUSED)]
                more = f" and {len(one.unused) - _UNUSED} more" if len(one.unused) > _UNUSED else ""
                yield f"  not used: {', '.join(named)}{more}"


def _lengths(report: Report) -> Iterator[str]:
    yield f"{'':<10}{'mean':>8}{'median':>8}{'90 %':>8}{'longest':>9}"
    for name, one in report.lengths.items():
        numbers = f"{one.mean:>8.1f}{one.median:>8.0f}{one.p90:>8.0f}{one.longest:>9}"
        yield f"{name:<10}{numbers}  {_sparkline(one.histogram)}"


def _sparkline(histogram: Histogram) -> str:
    highest = max(histogram.counts) or 1
    # A bin that has anything is not drawn as an empty one.
    return "".join(" " if not value else _BLOCKS[(len(_BLOCKS) * value - 1) // highest] for value in histogram.counts)


def _limits(report: Report) -> Iterator[str]:
    splits = report.limits[0].rows is not None
    lost = "left out" if report.on_long_row == SKIP else "lost"
    heads = ("whole", "split", "rows") if splits else ("whole", "cut", lost, "tokens left")
    columns: list[tuple[str, ...]] = [("--max_seq_len", *heads)]
    for one in report.limits:
        pairs = one.whole + one.cut + one.lost
        name = f"{one.limit}{'*' if one.limit == report.max_seq_len else ''}"
        shares = [share(value / pairs) for value in (one.whole, one.cut)]
        ends = (share(one.lost / pairs), share(one.kept)) if one.rows is None else (count(one.rows),)
        columns.append((name, *shares, *ends))
    for index in range(len(columns[0])):
        first, *others = (column[index] for column in columns)
        yield f"{first:<14}" + "".join(f"{cell:>9}" for cell in others)


def _bias(report: Report) -> Iterator[str]:
    one = report.bias
    if one is None:
        return
    pairs = one.longer + one.equal + one.shorter
    yield (
        f"chosen {one.mean_difference:+.1f} tokens on average; longer in {share(one.longer / pairs)}, as long in "
        f"{share(one.equal / pairs)}; “longer wins” is right for {share(one.rule)}"
    )


def _scores(report: Report) -> Iterator[str]:
    one = report.scores
    if one is None:
        return
    yield (
        f"of {count(one.scored)} of {count(one.pairs)} pairs: chosen {one.mean:+.3g} on average, lower in "
        f"{share(one.worse / one.scored)}, the same in {share(one.equal / one.scored)}  {_sparkline(one.histogram)}"
    )
    left = (f"{effect.gap:.4g} leaves {count(effect.left)}" for effect in one.effects)
    yield f"--filter_score_gap {', '.join(left)}"


def _equal(report: Report) -> Iterator[str]:
    one, kind = report.equal, report.kind
    text = f"{count(one.prompts)} {kind.prompts}, {count(one.duplicates.pairs)} duplicates"
    if one.contradictions is not None:
        text += f", {count(one.contradictions.pairs)} contradictions"
    if report.eval_sources:
        prompts = "" if one.leaked_prompts is None else f"{count(one.leaked_prompts.pairs)} prompts, "
        text += f"; held out too: {prompts}{count(one.leaked_pairs.pairs)} {kind.items}"
    yield text


def _answers(report: Report) -> Iterator[str]:
    one, kind = report.answers, report.kind
    if not one.pairs:
        yield f"all {kind.items} are cut at their end"
        return
    most = sorted(one.scripts.items(), key=lambda item: -item[1][0])[:4]
    scripts = ", ".join(f"{name} {share(numbers[0] / one.pairs)}" for name, numbers in most if numbers[0])
    refusals = f", {part(one.refusals[0], one.pairs)} like refusals" if one.refusals else ""
    yield (
        f"of {count(one.pairs)} {kind.halves[0] if kind.has_two else kind.answers}: {scripts}; {count(one.empty[0])} "
        f"empty, {count(one.one_word[0])} of one word{refusals}"
    )


def _run(report: Report) -> Iterator[str]:
    one, packing, kind = report.cost, report.packing, report.kind
    yield (
        f"{count(one.steps)} steps of {one.global_batch} {kind.batch_of}, {count(one.tokens)} tokens; time "
        f"{time_text(report)}"
    )
    saved = f"no padding saves {share(packing.saved_by_no_padding)}"
    if kind.has_two:
        saved = f"prefixes save {share(packing.saved_by_prefixes)}, no padding {share(packing.saved_by_no_padding)}"
    yield (
        f"{count(packing.packed)} tokens a micro-batch, at most {count(packing.largest)}, instead of "
        f"{count(packing.padded)} padded: {saved}"
    )
    yield f"memory {memory_text(report)}"


def _first_item(report: Report, colours: bool) -> Iterator[str]:
    one = report.examples[0]
    yield f"{''.join(map(_printable, one.place))}; what counts is {'in colour' if colours else 'in [[ ]]'}"
    for name, runs in one.parts.items():
        marks = (_RED if name == "rejected" else _GREEN, _PLAIN) if colours else ("[[", "]]")
        for index, line in enumerate(_excerpt(runs, marks)):
            yield f"  {name if index == 0 and report.kind.has_two else '':<10}{line}"


def _excerpt(runs: Sequence[Run], marks: tuple[str, str]) -> Iterator[str]:
    """The beginning of some runs in a few lines, each with its own marks.

    Control characters of the data are not sent to a terminal.
    """
    cells = [(_printable(character), run.counts) for run in runs for character in run.text]
    lines: list[list[tuple[str, bool]]] = [[]]
    columns = 0
    for cell in cells:
        width = 2 if unicodedata.east_asian_width(cell[0]) in "WF" else 1
        if columns + width > _WIDTH - _NAME - 17:
            if len(lines) == _TEXT_LINES:
                lines[-1].append(("…", False))
                break
            lines.append([])
            columns = 0
        lines[-1].append(cell)
        columns += width
    for line in lines:
        groups = itertools.groupby(line, key=lambda cell: cell[1])
        texts = (("".join(character for character, _ in group), counts) for counts, group in groups)
        yield "".join(f"{marks[0]}{text}{marks[1]}" if counts else text for text, counts in texts)


def _printable(character: str) -> str:
    return character if character.isprintable() else "⏎" if character == "\n" else " "


def _findings(report: Report) -> Iterator[str]:
    if not report.findings:
        yield "nothing unusual was found"
    for one in report.findings:
        mark = "-" if one.kind == NOTE else "!"
        for line in textwrap.wrap(one.text, _WIDTH - _NAME - 2) or [""]:
            yield f"{mark} {line}"
            mark = " "
