"""Several answers with scores or ranks: which of them make pairs, and damaged rows."""

from __future__ import annotations

import dataclasses
import math

import pytest

from minimind.config import fields_of
from minimind.config.jobs import DPOConfig
from minimind.data.shapes import ShapeOptions, parse_rows
from minimind.data.shapes.answers import pairs_of
from minimind.data.shapes.options import ADJACENT, ALL, BEST_WORST
from minimind.data.sources import RowError
from tests.conftest import conversation, pair

QUESTION = "What do horses eat?"


@pytest.mark.parametrize(
    ("qualities", "gap", "best_worst", "every", "adjacent"),
    [
        ([2, 8.5, 5], 0, [(1, 0)], [(1, 2), (1, 0), (2, 0)], [(1, 2), (2, 0)]),
        ([2, 8.5, 5], 3.5, [(1, 0)], [(1, 2), (1, 0)], [(1, 2)]),
        # Equal ones: the first of the best, the last of the worst.
        ([1, 3, 3, 1], 0, [(1, 3)], [(1, 0), (1, 3), (2, 0), (2, 3)], [(2, 0)]),
        ([4, 4, 4], 0, [], [], []),
        ([0.1, 0.3], 0.2, [(1, 0)], [(1, 0)], [(1, 0)]),
        ([1, 2], 1.5, [], [], []),
    ],
)
def test_which_answers_make_pairs(qualities, gap, best_worst, every, adjacent):
    assert pairs_of(qualities, BEST_WORST, gap) == best_worst
    assert pairs_of(qualities, ALL, gap) == every
    assert pairs_of(qualities, ADJACENT, gap) == adjacent


def test_the_flag_has_every_way():
    (flag,) = (flag for flag in fields_of(DPOConfig) if flag.name == "pairing")
    assert flag.metadata.choices == (BEST_WORST, ALL, ADJACENT)


TEXTS = ["Who cares.", "Hay.", "Grass?"]
SCORES = [2, 8.5, 5]
MESSAGES = [[{"role": "assistant", "content": text}] for text in TEXTS]
WAYS = {
    "a list of scores": {"prompt": QUESTION, "responses": TEXTS, "scores": SCORES},
    "other names": {"question": QUESTION, "candidates": TEXTS, "rewards": ["2", "8.5", "5"]},
    "a prompt of messages": {"prompt": [{"role": "user", "content": QUESTION}], "answers": MESSAGES, "ratings": SCORES},
    "a conversation": {
        "conversations": [{"from": "human", "value": QUESTION}],
        "generations": [{"role": "assistant", "content": text} for text in TEXTS],
        "scores": SCORES,
    },
    "objects": {
        "query": QUESTION,
        "completions": [{"text": text, "score": score} for text, score in zip(TEXTS, SCORES, strict=True)],
    },
}


@pytest.mark.parametrize("name", WAYS)
def test_ways_to_write_several_answers(name):
    rows = parse_rows(WAYS[name], ShapeOptions(pairing=ALL))
    expected = [("Hay.", "Grass?", 8.5, 5), ("Hay.", "Who cares.", 8.5, 2), ("Grass?", "Who cares.", 5, 2)]
    assert [(row.shape, row.chosen, row.rejected, row.scores, row.unused) for row in rows] == [
        ("answers", conversation(QUESTION, chosen), conversation(QUESTION, rejected), (better, worse), ())
        for chosen, rejected, better, worse in expected
    ]
    (row,) = parse_rows(WAYS[name])
    assert row == rows[1]


@pytest.mark.parametrize(
    "answers",
    [
        {"answers": TEXTS, "ranks": [3, 1, 2]},
        {"answers": [{"answer": text, "rank": rank} for text, rank in zip(TEXTS, (3, 1, 2), strict=True)]},
    ],
)
def test_of_ranks_one_is_the_best(answers):
    (row,) = parse_rows({"prompt": f"\n\nHuman: {QUESTION}\n\nAssistant: ", **answers})
    assert {"chosen": row.chosen, "rejected": row.rejected} == pair(QUESTION, "Hay.", "Who cares.")
    assert all(map(math.isnan, row.scores))


def test_ultrafeedback_counts_what_it_does_not_read():
    row = {
        "source": "x",
        "instruction": QUESTION,
        "completions": [
            {"response": "Hay.", "overall_score": 9.0, "fine-grained_score": 4.5, "critique": "Good."},
            {"response": "Who cares.", "overall_score": 1.0, "fine-grained_score": 4.75, "critique": None},
        ],
    }
    (read,) = parse_rows(row)
    assert (read.shape, read.scores) == ("ultrafeedback", (9.0, 1.0))
    assert read.unused == ("source", "completions[].fine-grained_score", "completions[].critique")


def test_answers_with_equal_scores_give_no_pair():
    assert parse_rows({"prompt": QUESTION, "answers": ["a", "b", "a"], "scores": [1, 1, 1]}) == []
    assert parse_rows({"prompt": QUESTION, "answers": ["a", "b"], "scores": [1, 3]}, ShapeOptions(score_gap=2.5)) == []


def test_scores_of_two_answers_stay_with_the_pair():
    good = pair(QUESTION, "Hay.", "Who cares.")
    for columns in ({"score_chosen": 8, "score_rejected": "2.5"}, {"chosen-rating": 8.0, "rejected-rating": 2.5}):
        (row,) = parse_rows({**good, **columns})
        assert (row.scores, row.unused) == ((8.0, 2.5), ())
    for value in ("good", None, float("nan"), True, [1], 10**400, "inf"):
        (row,) = parse_rows({**good, "score_chosen": value, "score_rejected": 1})
        assert all(map(math.isnan, row.scores))
        assert "score_rejected" in row.unused


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (
            {"answers": TEXTS, "scores": [1, 2]},
            "'scores' is not a list of 3 numbers, one for each of 'answers', but of 2",
        ),
        ({"answers": TEXTS, "scores": 3}, "'scores' is not a list of 3 numbers, one for each of 'answers', but 3"),
        ({"answers": TEXTS, "scores": [1, None, 2]}, "'scores', answer 1: not a number: None"),
        ({"answers": TEXTS, "scores": [1, 2, 3], "ranks": [3, 2, 1]}, "'scores', 'ranks' may all be the scores"),
        ({"answers": TEXTS, "responses": TEXTS, "scores": SCORES}, "'responses', 'answers' may all be the answers"),
        ({"answers": TEXTS, "query": "x", "scores": SCORES}, "'prompt', 'query' may all be the prompt"),
        ({"answers": TEXTS}, "'answers' have no scores: 'scores', 'ratings', 'rewards', 'ranks' are not there"),
        ({"answers": ["Hay."], "scores": [1]}, "'answers' is not a list of two or more answers: ['Hay.']"),
        ({"answers": "Hay.", "scores": [1]}, "'answers' is not a list of two or more answers: 'Hay.'"),
        ({"answers": ["a"] * 101, "scores": [1] * 101}, "'answers' has 101 answers; 100 are the most"),
        ({"answers": ["a", 3], "scores": [1, 2]}, "'chosen' is neither a text nor a list of messages: 3"),
        (
            {"answers": ["a", "a"], "scores": [1, 2]},
            "answers 1 and 0 of 'answers' are the same, but their scores differ",
        ),
        ({"answers": [{"score": 1}, {"text": "x", "score": 2}]}, "answer 0 of 'answers' has no text under 'response'"),
        (
            {"answers": [{"text": "y"}, {"text": "x", "score": 2}]},
            "answer 0 of 'answers' has neither a score nor a rank",
        ),
        ({"answers": [{"text": "y", "score": 1, "rank": 1}] * 2}, "answer 0 of 'answers' has both 'score' and a rank"),
        ({"answers": [{"text": "y", "score": "N/A"}] * 2}, "answer 0 of 'answers', 'score': not a number: 'N/A'"),
        ({"answers": [{"text": "y", "score": 1}, "x"]}, "'answers' have no scores"),
    ],
)
def test_damaged_row(row, reason):
    with pytest.raises(RowError) as caught:
        parse_rows({"prompt": QUESTION, **row})
    assert str(caught.value).startswith(f"read as several answers with scores: {reason}")


def test_answers_beside_a_pair_are_another_reading_only_if_they_have_scores():
    texts = {"prompt": QUESTION, "chosen": "Hay.", "rejected": "Who cares.", "answers": TEXTS}
    (row,) = parse_rows(texts)
    assert (row.shape, row.unused) == ("trl", ("answers",))
    with pytest.raises(RowError, match=r"can be read as TRL's texts \(.*\) or as several answers with scores \("):
        parse_rows({**texts, "scores": SCORES})
    (named,) = parse_rows({**texts, "scores": SCORES}, ShapeOptions(data_format="trl"))
    assert named == dataclasses.replace(row, unused=("answers", "scores"))
