"""The sections of the page: the tables, charts and texts of one part of the report each.

Report -> one function for each section -> Markup of its content
"""

from __future__ import annotations

from collections.abc import Iterator

from minimind.data.selection import SKIP
from minimind.inspection.lengths import LengthBias
from minimind.inspection.report import Report
from minimind.inspection.scores import ScoreReport
from minimind.pages.charts import Bar, Part, Series, bars, histogram
from minimind.pages.drawing import BLUE, GREEN, GREY, ORANGE, SKY, VERMILION
from minimind.pages.markup import Markup, element
from minimind.pages.parts import note, table
from minimind.pages.words import count, duration, gib, part, plural, share

_CHOSEN, _REJECTED, _PLAIN, _KEPT, _CUT, _LOST = GREEN, VERMILION, BLUE, BLUE, ORANGE, VERMILION
_PREFIX, _PADDING = SKY, GREY
_COLOURS = {"chosen": _CHOSEN, "rejected": _REJECTED}


def findings(report: Report) -> Iterator[Markup]:
    """What a person should know first."""
    items = [element("li", one.text, cls=one.kind) for one in report.findings]
    yield element("ul", *items, cls="findings") if items else element("p", "Nothing unusual was found.")


def rows(report: Report) -> Iterator[Markup]:
    """The rows of each source, and what is refused."""
    yield table(
        ["source", f"#{report.kind.rows}", "#refused", f"#{report.kind.batch_of}", "#used", "shapes"],
        [
            [
                f"{one.name}{note}",
                count(one.rows),
                count(one.refused_rows),
                count(one.pairs),
                count(one.selected),
                ", ".join(f"{title}: {count(number)}" for title, number in one.shapes.items()),
            ]
            for sources, note in ((report.sources, ""), (report.eval_sources, " (held out)"))
            for one in sources
        ],
    )
    for one in (*report.sources, *report.eval_sources):
        if one.refused:
            yield element("h3", f"Refused rows of {one.name}")
            yield table(
                ["#rows", "reason", "where", "the first of them"],
                [[count(group.rows), group.reason, group.first, group.excerpt] for group in one.refused],
            )
        if one.messages:
            yield element("h3", f"What the run says about {one.name}")
            yield element("ul", *(element("li", message) for message in one.messages))


def lengths(report: Report) -> Iterator[Markup]:
    """Histograms of lengths, and what each limit does."""
    found, kind = report.lengths, report.kind
    yield element(
        "div",
        *(
            element(
                "figure",
                element("h3", chart.title),
                histogram(
                    [
                        Series(
                            name=one.name,
                            colour=_COLOURS.get(one.name, _PLAIN),
                            histogram=found[one.name].histogram,
                        )
                        for one in chart.lengths
                    ],
                    "tokens",
                ),
            )
            for chart in kind.charts
        ),
        cls="columns",
    )
    yield table(
        ["tokens", "#mean", "#median", "#90 % up to", "#99 % up to", "#longest"],
        [
            [length.label, f"{one.mean:.1f}", *(count(value) for value in (one.median, one.p90, one.p99, one.longest))]
            for length in kind.lengths
            for one in [found[length.name]]
        ],
    )
    yield from _limits(report)


def _limits(report: Report) -> Iterator[Markup]:
    """What each limit does, as bars and as a table."""
    kind, splits, skips = report.kind, report.limits[0].rows is not None, report.on_long_row == SKIP
    without = "left out" if skips else "lost"
    yield element("h3", f"What a --max_seq_len does to the {kind.items}")
    names = ("whole", "split") if splits else ("whole", "cut", without)
    values = [dict(zip(names, (one.whole, one.cut, one.lost), strict=False)) for one in report.limits]
    yield bars(
        [
            Bar(
                label=count(one.limit) + (" (this run)" if one.limit == report.max_seq_len else ""),
                parts=tuple(
                    Part(name=name, colour=colour, value=of_limit[name])
                    for name, colour in zip(names, (_KEPT, _CUT, _LOST), strict=False)
                ),
                note=f"{share(one.whole / max(1, sum(of_limit.values())))} whole",
            )
            for one, of_limit in zip(report.limits, values, strict=True)
        ]
    )
    heads = ["#whole", "#split", "#rows"] if splits else ["#whole", "#cut at the end", f"#{without}", "#tokens left"]
    yield table(
        ["#--max_seq_len", *heads],
        [
            [
                count(one.limit),
                *(part(value, sum(of_limit.values())) for value in of_limit.values()),
                share(one.kept) if one.rows is None else count(one.rows),
            ]
            for one, of_limit in zip(report.limits, values, strict=True)
        ],
        marked=[one.limit == report.max_seq_len for one in report.limits],
    )
    lost = "" if splits or skips else f"A lost {kind.item} keeps {kind.keeps}. "
    yield note(
        f"{lost}--max_seq_len {report.whole_limit} keeps all {kind.items} whole. --on_long_row says what happens to "
        "the others."
    )


def bias(one: LengthBias) -> Iterator[Markup]:
    """How much longer chosen is."""
    pairs = one.longer + one.equal + one.shorter
    yield element(
        "p",
        f"Chosen answers have {one.mean_difference:+.1f} tokens compared with rejected ones on average (median "
        f"{one.median_difference:+.0f}). They are longer in {part(one.longer, pairs)} of the pairs, as long in "
        f"{part(one.equal, pairs)}, shorter in {part(one.shorter, pairs)}. The rule “the longer answer wins” is right "
        f"for {share(one.rule)}; without a bias it would be 50 %.",
    )
    series = [Series(name="pairs", colour=_PLAIN, histogram=one.differences)]
    yield element("figure", histogram(series, "tokens of chosen minus tokens of rejected", open_start=True))


def scores(one: ScoreReport) -> Iterator[Markup]:
    """How far the scores of the answers are apart, and what a --filter_score_gap leaves."""
    yield element(
        "p",
        f"{part(one.scored, one.pairs)} of the pairs have scores. Chosen answers have {one.mean:+.4g} compared with "
        f"rejected ones on average (median {one.median:+.4g}). The rejected answer has the higher score in "
        f"{part(one.worse, one.scored)} of these pairs, the same in {part(one.equal, one.scored)}.",
    )
    series = [Series(name="pairs", colour=_PLAIN, histogram=one.histogram)]
    yield element("figure", histogram(series, "score of chosen minus score of rejected", open_start=True))
    left = [[f"{effect.gap:.6g}", part(effect.left, one.pairs)] for effect in one.effects]
    yield table(["#--filter_score_gap", "#pairs that it leaves"], left)


def equal_pairs(report: Report) -> Iterator[Markup]:
    """Duplicates, contradictions and leaks."""
    one, kind = report.equal, report.kind
    listed = [
        (f"duplicates of an earlier {kind.item}", one.duplicates),
        ("contradictions: another pair prefers the other answer", one.contradictions),
    ]
    if report.eval_sources:
        listed.append((f"prompts that the held-out {kind.items} have too", one.leaked_prompts))
        listed.append((f"whole {kind.items} that are held out too", one.leaked_pairs))
    different = (
        f"{count(one.prompts)} different prompts" if kind.has_prompts else f"{count(one.prompts)} different ones"
    )
    yield element("p", f"{count(one.pairs)} {kind.items} have {different}.")
    yield table(
        ["", f"#{kind.items}", "the first of them"],
        [[name, part(found.pairs, one.pairs), "; ".join(found.places)] for name, found in listed if found is not None],
    )
    yield note("Messages are compared exactly: texts that differ in one character are different.")


def answers(report: Report) -> Iterator[Markup]:
    """What a sample of answers says."""
    one, kind = report.answers, report.kind
    yield note(
        f"Counted in {count(one.pairs)} of {count(report.equal.pairs)} {kind.items}, none of which is cut at its end."
        f"{kind.sampled} Scripts are those of the letters and stand in for languages."
    )
    if not one.pairs:
        return
    yield bars(
        [
            Bar(
                label=name,
                parts=tuple(
                    Part(name=half, colour=_COLOURS.get(half, _PLAIN), value=number)
                    for half, number in zip(kind.halves, numbers, strict=True)
                ),
                note=", ".join(share(number / one.pairs) for number in numbers),
            )
            for name, numbers in one.scripts.items()
        ]
    )
    counted = {"empty": one.empty, "one word": one.one_word, "reads like a refusal": one.refusals}
    yield table(
        [kind.answers, *(f"#{half}" for half in kind.halves)],
        [[name, *(part(value, one.pairs) for value in values)] for name, values in counted.items() if values],
    )
    if one.other_script is not None:
        yield note(f"In {part(one.other_script, one.pairs)} of the pairs the two answers are in different scripts.")
    if one.examples:
        yield element("h3", f"{kind.learnt.capitalize()} that read like refusals")
        yield table(["where", "beginning"], [[example.place, example.text] for example in one.examples])


def cost(report: Report) -> Iterator[Markup]:
    """What packing saves, and what the run needs."""
    one, planned, kind = report.packing, report.cost, report.kind
    prefixes = Part(name="shared prefixes, computed once", colour=_PREFIX, value=one.unpadded - one.packed)
    yield bars(
        [
            Bar(
                label="padded rows",
                parts=(
                    Part(name="trained on", colour=_KEPT, value=one.packed),
                    *([prefixes] if kind.has_two else []),
                    Part(name="padding, not computed", colour=_PADDING, value=one.padded - one.unpadded),
                ),
                note=f"{count(one.padded)} tokens",
            )
        ]
    )
    by_prefixes = f"{share(one.saved_by_prefixes)} are saved by shared prefixes and " if kind.has_two else ""
    yield element(
        "p",
        f"A micro-batch has {count(one.packed)} packed tokens, at most {count(one.largest)}. Padded to its longest row "
        f"it would have {count(one.padded)}: {by_prefixes}{share(one.saved_by_no_padding)} "
        f"{'' if by_prefixes else 'are saved '}by no padding. Padded to --max_seq_len, as MiniMind does, it would have "
        f"{count(one.padded_to_limit)}. Means over the {count(one.micro_batches)} micro-batches of "
        f"{count(one.steps)} steps.",
    )
    over = f"{plural(planned.epochs, 'epoch')}, {plural(planned.ranks, 'rank')}"
    lines = [
        ["global steps", f"{count(planned.steps)} of {planned.global_batch} {kind.batch_of} ({over})"],
        ["tokens to train on", f"{count(planned.tokens)} packed, {count(planned.row_tokens)} in rows"],
        ["memory of a rank", memory_text(report)],
        ["time", time_text(report)],
    ]
    yield table(["", ""], lines)


def memory_text(report: Report) -> str:
    """The planned memory in a sentence."""
    memory = report.cost.memory
    if memory is None:
        return f"not planned: {report.cost.no_memory}"
    return (
        f"up to {gib(memory.peak)} GiB with these {report.kind.items}, {gib(memory.peak_at_limit)} GiB if all rows had "
        f"--max_seq_len tokens; {memory.device} has {gib(memory.available)} GiB"
    )


def time_text(report: Report) -> str:
    """The duration in a sentence."""
    if report.cost.seconds is None:
        return "not planned: give the rate that an earlier run logged, --tokens_per_second"
    return f"{duration(report.cost.seconds)} at the given rate, without evaluation and saving"
