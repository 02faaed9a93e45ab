"""The sections of the page: the tables, charts and texts of one part of the report each.

Report -> one function for each section -> Markup of its content
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from minimind.inspection.report import Report
from minimind.inspection.scores import ScoreReport
from minimind.inspection.texts import PairTexts, Run
from minimind.pages.charts import Bar, Part, Series, bars, histogram
from minimind.pages.markup import Markup, element, joined
from minimind.pages.parts import note, table
from minimind.pages.words import count, duration, gib, part, plural, share

_CHOSEN, _REJECTED, _PLAIN, _KEPT, _CUT, _LOST = "#3b8d5b", "#d2694a", "#4c78a8", "#4c78a8", "#e3b34c", "#c8553d"
_PREFIX, _PADDING = "#9ecae1", "#d5dbe1"


def findings(report: Report) -> Iterator[Markup]:
    """What a person should know first."""
    items = [element("li", one.text, cls=one.kind) for one in report.findings]
    yield element("ul", *items, cls="findings") if items else element("p", "Nothing unusual was found.")


def rows(report: Report) -> Iterator[Markup]:
    """The rows of each source, and what is refused."""
    yield table(
        ["source", "#rows", "#refused", "#pairs", "#used", "shapes"],
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
    found = report.lengths
    answers = [Series(name="chosen", colour=_CHOSEN, histogram=found.chosen.histogram)]
    answers.append(Series(name="rejected", colour=_REJECTED, histogram=found.rejected.histogram))
    prompts = [Series(name="prompts", colour=_PLAIN, histogram=found.prompt.histogram)]
    yield element(
        "div",
        element("figure", element("h3", "Prompts"), histogram(prompts, "tokens")),
        element("figure", element("h3", "Answers"), histogram(answers, "tokens")),
        cls="columns",
    )
    yield table(
        ["tokens", "#mean", "#median", "#90 % up to", "#99 % up to", "#longest"],
        [
            [name, f"{one.mean:.1f}", *(count(value) for value in (one.median, one.p90, one.p99, one.longest))]
            for name, one in (
                ("prompt", found.prompt),
                ("chosen answer", found.chosen),
                ("rejected answer", found.rejected),
            )
        ],
    )
    yield from _limits(report)


def _limits(report: Report) -> Iterator[Markup]:
    """What each limit does, as bars and as a table."""
    yield element("h3", "What a --max_seq_len does to the pairs")
    yield bars(
        [
            Bar(
                label=count(one.limit) + (" (this run)" if one.limit == report.max_seq_len else ""),
                parts=(
                    Part(name="whole", colour=_KEPT, value=one.whole),
                    Part(name="cut", colour=_CUT, value=one.cut),
                    Part(name="lost", colour=_LOST, value=one.lost),
                ),
                note=f"{share(one.whole / max(1, one.whole + one.cut + one.lost))} whole",
            )
            for one in report.limits
        ]
    )
    yield table(
        ["#--max_seq_len", "#whole", "#cut at the end", "#lost"],
        [
            [
                count(one.limit),
                *(part(value, one.whole + one.cut + one.lost) for value in (one.whole, one.cut, one.lost)),
            ]
            for one in report.limits
        ],
        marked=[one.limit == report.max_seq_len for one in report.limits],
    )
    yield note(
        f"A lost pair keeps no difference that counts. --max_seq_len {report.whole_limit} keeps all pairs whole. "
        "--on_long_row says what happens to the others."
    )


def bias(report: Report) -> Iterator[Markup]:
    """How much longer chosen is."""
    one = report.bias
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
    one, pairs = report.equal, report.pairs
    listed = [
        ("duplicates of an earlier pair", one.duplicates),
        ("contradictions: another pair prefers the other answer", one.contradictions),
    ]
    if report.eval_sources:
        listed.append(("prompts that the held-out pairs have too", one.leaked_prompts))
        listed.append(("whole pairs that are held out too", one.leaked_pairs))
    yield element("p", f"{count(pairs)} pairs have {count(one.prompts)} different prompts.")
    yield table(
        ["", "#pairs", "the first of them"],
        [[name, part(found.pairs, pairs), "; ".join(found.places)] for name, found in listed],
    )
    yield note("Messages are compared exactly: texts that differ in one character are different.")


def answers(report: Report) -> Iterator[Markup]:
    """What a sample of answers says."""
    one = report.answers
    yield note(
        f"Counted in {count(one.pairs)} of {count(report.pairs)} pairs, none of which is cut at its end. Scripts are "
        "those of the letters and stand in for languages."
    )
    if not one.pairs:
        return
    yield bars(
        [
            Bar(
                label=name,
                parts=(
                    Part(name="chosen", colour=_CHOSEN, value=chosen),
                    Part(name="rejected", colour=_REJECTED, value=rejected),
                ),
                note=f"{share(chosen / one.pairs)}, {share(rejected / one.pairs)}",
            )
            for name, (chosen, rejected) in one.scripts.items()
        ]
    )
    names = ("empty", "one word", "reads like a refusal")
    yield table(
        ["answers", "#chosen", "#rejected"],
        [
            [name, *(part(value, one.pairs) for value in values)]
            for name, values in zip(names, (one.empty, one.one_word, one.refusals), strict=True)
        ],
    )
    yield note(f"In {part(one.other_script, one.pairs)} of the pairs the two answers are in different scripts.")
    if one.examples:
        yield element("h3", "Chosen answers that read like refusals")
        yield table(["where", "beginning"], [[example.place, example.text] for example in one.examples])


def cost(report: Report) -> Iterator[Markup]:
    """What packing saves, and what the run needs."""
    one, planned = report.packing, report.cost
    yield bars(
        [
            Bar(
                label="padded rows",
                parts=(
                    Part(name="trained on", colour=_KEPT, value=one.packed),
                    Part(name="shared prefixes, computed once", colour=_PREFIX, value=one.unpadded - one.packed),
                    Part(name="padding, not computed", colour=_PADDING, value=one.padded - one.unpadded),
                ),
                note=f"{count(one.padded)} tokens",
            )
        ]
    )
    yield element(
        "p",
        f"A micro-batch has {count(one.packed)} packed tokens, at most {count(one.largest)}. Padded to its longest row "
        f"it would have {count(one.padded)}: {share(one.saved_by_prefixes)} are saved by shared prefixes and "
        f"{share(one.saved_by_no_padding)} by no padding. Padded to --max_seq_len, as MiniMind does, it would have "
        f"{count(one.padded_to_limit)}. Means over the {count(one.micro_batches)} micro-batches of "
        f"{count(one.steps)} steps.",
    )
    over = f"{plural(planned.epochs, 'epoch')}, {plural(planned.ranks, 'rank')}"
    lines = [
        ["global steps", f"{count(planned.steps)} of {planned.global_batch} pairs ({over})"],
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
        f"up to {gib(memory.peak)} GiB with these pairs, {gib(memory.peak_at_limit)} GiB if all rows had --max_seq_len "
        f"tokens; {memory.device} has {gib(memory.available)} GiB"
    )


def time_text(report: Report) -> str:
    """The duration in a sentence."""
    if report.cost.seconds is None:
        return "not planned: give the rate that an earlier run logged, --tokens_per_second"
    return f"{duration(report.cost.seconds)} at the given rate, without evaluation and saving"


def examples(report: Report) -> Iterator[Markup]:
    """Pairs as they will be trained on."""
    yield element(
        "p",
        "Rendered by the run's template and tokenizer, cut to its limit. The loss counts the tokens that are marked: ",
        element("mark", "chosen"),
        " ",
        element("mark", "rejected", cls="rejected"),
        ".",
    )
    for number, one in enumerate(report.examples):
        yield _example(one, is_open=number == 0)


def _example(one: PairTexts, *, is_open: bool) -> Markup:
    title = f"{one.place}: {count(one.tokens[0])} tokens chosen, {count(one.tokens[1])} rejected"
    halves = [
        element("div", element("h3", name), element("div", *_runs(runs, half), cls="text"))
        for name, runs, half in (("Chosen", one.chosen, ""), ("Rejected", one.rejected, "rejected"))
    ]
    prompt = joined(element("h3", "Prompt, in both rows"), element("div", *_runs(one.prompt, ""), cls="text"))
    content = element("div", prompt, element("div", *halves, cls="columns"))
    return element("details", element("summary", title), content, open="" if is_open else None)


def _runs(runs: Sequence[Run], half: str) -> Iterator[Markup]:
    for run in runs:
        yield element("mark", run.text, cls=half or None) if run.counts else joined(run.text)
