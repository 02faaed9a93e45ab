"""What stands out in a report, and what does not."""

from __future__ import annotations

import dataclasses

import pytest

from minimind.inspection import findings
from minimind.inspection.equal_pairs import Found
from minimind.inspection.items import ITEMS
from minimind.inspection.lengths import LimitEffect
from minimind.inspection.report import NOTE, STOPS, WARNING, Finding
from tests.unit.inspection.made import made_report, made_report_of

REPORT, PAIRS = made_report(), ITEMS["pairs"]
NONE = Found(pairs=0, places=())


def kinds(found) -> list[str]:
    return [one.kind for one in found]


@pytest.mark.parametrize(
    ("whole", "cut", "lost", "expected"),
    [(100, 0, 0, []), (95, 5, 0, [NOTE]), (94, 6, 0, [WARNING]), (99, 0, 1, [NOTE]), (98, 0, 2, [WARNING])],
)
def test_limits(whole, cut, lost, expected):
    limits = [LimitEffect(limit=128, whole=whole, cut=cut, lost=lost, kept=0.9)]
    limits.append(LimitEffect(limit=256, whole=100, cut=0, lost=0, kept=1.0))
    found = list(findings.about_lengths(made_report(limits=tuple(limits), enough_limit=200)))
    assert kinds(found) == expected
    assert all("90 % of the tokens are left; 200 keeps 99 % whole" in one.text for one in found)


def test_texts_that_are_split_are_nothing_to_look_at():
    limits = [LimitEffect(limit=128, whole=1, cut=99, lost=0, rows=500, kept=1.0)]
    assert list(findings.about_lengths(dataclasses.replace(made_report_of("texts"), limits=tuple(limits)))) == []


@pytest.mark.parametrize(
    ("policy", "cut", "said"),
    [
        ("cut", 2, "cuts 2 (20 %) of the pairs and loses 3 (30 %); 75 %"),
        ("keep", 2, "cuts 5 (50 %) of the pairs, of which 3 (30 %) keep no difference that counts; 75 %"),
        ("skip", 0, "leaves out 3 (30 %) of the pairs; 75 %"),
    ],
)
def test_what_a_limit_does_is_said_by_the_policy(policy, cut, said):
    limits = (LimitEffect(limit=128, whole=7 - cut, cut=cut, lost=3, kept=0.75),)
    (found,) = findings.about_lengths(made_report(limits=limits, on_long_row=policy))
    assert said in found.text


@pytest.mark.parametrize(("rule", "word"), [(0.59, ""), (0.41, ""), (0.75, "longer"), (0.25, "shorter")])
def test_bias(rule, word):
    found = list(findings.about_bias(dataclasses.replace(REPORT.bias, rule=rule)))
    assert [f"“the {word} answer wins” is right for 75 %" in one.text for one in found] == [True] * bool(word)


def test_equal_pairs():
    found = list(findings.about_equal(REPORT.equal, PAIRS))
    assert kinds(found) == [WARNING, WARNING, NOTE]
    assert all(one.text.startswith("2 (33.3 %) of the pairs") for one in found)
    none = dataclasses.replace(REPORT.equal, duplicates=NONE, contradictions=NONE, leaked_prompts=NONE)
    assert list(findings.about_equal(none, PAIRS)) == []


def test_rows_that_stand_alone_are_called_by_their_names():
    for items, numbers in (("conversations", 2), ("texts", 1)):
        made = made_report_of(items)
        found = list(findings.about_equal(made.equal, made.kind))
        assert len(found) == numbers
        assert all(f"of the {items} " in one.text for one in found)
        assert "repeat an earlier " + made.kind.item in found[-1].text
        answers = [one.text for one in findings.about_answers(made.answers, made.kind)]
        assert [f" 6 {made.kind.learnt} " in text for text in answers] == [True] * (3 if made.kind.replies else 2)
        (note,) = findings.about_cost(made.cost, 0, made.kind)
        assert note.text.startswith(f"no held-out {items}: --eval_share")


def test_duplicates_come_with_their_remedy():
    assert "--dedup 1" in list(findings.about_equal(REPORT.equal, PAIRS))[-1].text


def test_scores():
    (found,) = findings.about_scores(REPORT.scores)
    assert found.kind == WARNING
    assert "in 2 (25 %) of the pairs" in found.text
    assert "--filter_score_gap 0" in found.text
    assert list(findings.about_scores(None)) == []
    assert list(findings.about_scores(dataclasses.replace(REPORT.scores, worse=0))) == []


def test_answers():
    few = dataclasses.replace(REPORT.answers, pairs=1000, refusals=(10, 900), empty=(0, 50), one_word=(10, 0))
    assert list(findings.about_answers(few, PAIRS)) == []
    many = dataclasses.replace(few, refusals=(11, 0), empty=(1, 0), one_word=(11, 0))
    assert [one.text.split(" chosen answers ")[1] for one in findings.about_answers(many, PAIRS)] == [
        "read like refusals",
        "are empty",
        "have one word",
    ]


def test_rows_and_cost():
    (rows,) = findings.about_rows(REPORT.sources, "skip")
    assert rows.text == "text: 2 rows of 10 refused (--on_bad_row skip); most often: bad text (lines 1, 2): row text"
    assert list(findings.about_cost(REPORT.cost, 4, PAIRS)) == []
    small = dataclasses.replace(REPORT.cost, memory=dataclasses.replace(REPORT.cost.memory, available=2**29))
    memory, held_out = findings.about_cost(small, 0, PAIRS)
    assert "a rank needs up to 1.00 GiB, and main memory has 0.50 GiB" in memory.text
    assert (held_out.kind, "--eval_share" in held_out.text) == (NOTE, True)


def test_the_most_important_comes_first():
    made = [Finding(kind=kind, text=text) for kind, text in ((NOTE, "a"), (WARNING, "b"), (STOPS, "c"), (WARNING, "d"))]
    assert "".join(one.text for one in findings.ordered(iter(made))) == "cbda"
