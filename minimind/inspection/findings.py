"""What stands out in a report: the numbers that a person should see before the run.

statistics -> find -> Finding, the most important first
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from minimind.data.selection import KEEP, SKIP
from minimind.inspection.answers import AnswerReport
from minimind.inspection.cost import Cost
from minimind.inspection.equal_pairs import EqualPairs, Found
from minimind.inspection.items import ItemKind
from minimind.inspection.lengths import LengthBias
from minimind.inspection.report import NOTE, STOPS, WARNING, Finding, Report
from minimind.inspection.rows import SourceReport
from minimind.inspection.scores import ScoreReport
from minimind.pages.words import gib, part, plural, share

# A rule that is right so often tells more about length than about quality.
_BIASED = 0.6
# Shares from which on something is more than a remark.
_MANY_CUT, _MANY_LOST, _MANY_SHORT, _MANY_REFUSALS = 0.05, 0.01, 0.01, 0.01


def about_rows(sources: Sequence[SourceReport], on_bad_row: str) -> Iterator[Finding]:
    """Rows that are refused."""
    for one in sources:
        if one.refused:
            first = one.refused[0]
            excerpt = f": {first.excerpt}" if first.excerpt else ""
            text = f"{one.name}: {plural(one.refused_rows, 'row')} of {one.rows} refused (--on_bad_row {on_bad_row}); "
            yield Finding(kind=WARNING, text=f"{text}most often: {first.reason} ({first.first}){excerpt}")


def about_lengths(report: Report) -> Iterator[Finding]:
    """Pairs that the run's limit cuts, loses or leaves out. Texts that it splits are nothing to look at: all of them is
    trained on."""
    limit, enough = report.max_seq_len, report.enough_limit
    one = next(effect for effect in report.limits if effect.limit == limit)
    pairs = one.whole + one.cut + one.lost
    if one.rows is None and (one.cut or one.lost):
        many = one.cut > _MANY_CUT * pairs or one.lost > _MANY_LOST * pairs
        advice = f"; {enough} keeps 99 % whole" if enough > limit else ""
        does = f"cuts {part(one.cut, pairs)} of the {report.kind.items} and loses {part(one.lost, pairs)}"
        if report.on_long_row == SKIP:
            does = f"leaves out {part(one.lost, pairs)} of the {report.kind.items}"
        elif report.on_long_row == KEEP:
            without = f"{part(one.lost, pairs)} keep {report.kind.keeps}"
            does = f"cuts {part(one.cut + one.lost, pairs)} of the {report.kind.items}, of which {without}"
        yield Finding(
            kind=WARNING if many else NOTE,
            text=f"--max_seq_len {limit} {does}; {share(one.kept)} of the tokens are left{advice}",
        )


def about_bias(bias: LengthBias | None) -> Iterator[Finding]:
    """Answers of which the longer, or the shorter, is mostly the better."""
    if bias is None:
        return
    longer = bias.rule > 0.5
    right = bias.rule if longer else 1 - bias.rule
    if right >= _BIASED:
        yield Finding(
            kind=WARNING,
            text=f"length bias: “the {'longer' if longer else 'shorter'} answer wins” is right for {share(right)} of "
            f"the pairs (chosen {bias.mean_difference:+.1f} tokens on average), so a policy can win by length alone",
        )


def about_scores(scores: ScoreReport | None) -> Iterator[Finding]:
    """Pairs whose scores say that the rejected answer is the better one."""
    if scores is not None and scores.worse:
        yield Finding(
            kind=WARNING,
            text=f"in {part(scores.worse, scores.pairs)} of the pairs the rejected answer has the higher score "
            "(--filter_score_gap 0 leaves these out)",
        )


def about_equal(equal: EqualPairs, kind: ItemKind) -> Iterator[Finding]:
    """Pairs that contradict others, are held out too, or are there twice."""
    kinds: tuple[tuple[Found | None, str, str], ...] = (
        (equal.contradictions, "contradict another pair: the same two answers, once each way", WARNING),
        (equal.leaked_pairs, "are held out too, so that the evaluation has seen them", WARNING),
        (equal.leaked_prompts, "have a prompt that the held-out pairs have too", WARNING),
        (equal.duplicates, f"repeat an earlier {kind.item} (--dedup 1 takes each once)", NOTE),
    )
    for found, what, weight in kinds:
        if found is not None and found.pairs:
            text = f"{part(found.pairs, equal.pairs)} of the {kind.items} {what}: {found.places[0]}"
            yield Finding(kind=weight, text=text)


def about_answers(answers: AnswerReport, kind: ItemKind) -> Iterator[Finding]:
    """Answers to learn, or texts, that are probably not meant as good ones."""
    kinds = (
        (answers.refusals, "read like refusals", _MANY_REFUSALS),
        (answers.empty, "are empty", 0.0),
        (answers.one_word, "have one word", _MANY_SHORT),
    )
    for numbers, what, many in kinds:
        if numbers and numbers[0] > many * answers.pairs:
            text = f"{part(numbers[0], answers.pairs)} of {answers.pairs} {kind.learnt} {what}"
            yield Finding(kind=WARNING, text=text)


def about_cost(cost: Cost, eval_pairs: int, kind: ItemKind) -> Iterator[Finding]:
    """A run that may not fit, and one that is not evaluated."""
    memory = cost.memory
    if memory is not None and memory.peak > memory.available:
        yield Finding(
            kind=WARNING,
            text=f"a rank needs up to {gib(memory.peak)} GiB, and {memory.device} has {gib(memory.available)} GiB; "
            "`python launch/plan.py` shows all options",
        )
    if not eval_pairs:
        by = "by prompt" if kind.has_prompts else "no text on both sides"
        yield Finding(kind=NOTE, text=f"no held-out {kind.items}: --eval_share 0.02 splits some off, {by}")


def ordered(findings: Iterator[Finding]) -> tuple[Finding, ...]:
    """Findings by kind: what stops the run, warnings, notes."""
    kinds = (STOPS, WARNING, NOTE)
    return tuple(sorted(findings, key=lambda one: kinds.index(one.kind)))
