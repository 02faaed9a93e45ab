"""Differences between halves that reach the tokens that count, or do not."""

from __future__ import annotations

import numpy as np
import pytest

from minimind.data.differences import (
    answer_start,
    check_prompts,
    common_prefix,
    difference_counts,
    least_limit,
    no_difference,
)
from minimind.data.encoding import TokenizedRow
from minimind.data.rows import PreferenceRow
from minimind.data.sources import RowError
from tests.conftest import conversation


def row(tokens: list[int], counted: list[int]) -> TokenizedRow:
    """A row whose tokens at these places count."""
    return TokenizedRow(tokens, [int(index in counted) for index in range(len(tokens))])


@pytest.mark.parametrize(
    ("one", "other", "length"),
    [
        *[([1, 2, 3], [1, 2, 4], 2), ([1, 2], [1, 2, 4], 2), ([5], [6], 0), ([], [6], 0), ([7, 8], [7, 8], 2)],
        # A single difference at each place of a longer row, and equal tokens behind it.
        *[([1] * at + [2] + [1] * (9 - at), [1] * 10, at) for at in range(10)],
        ([1] * 10, [1] * 10, 10),
        ([1] * 10, [1] * 7, 7),
    ],
)
def test_common_prefix(one, other, length):
    one, other = (TokenizedRow(row, [0] * len(row)) for row in (one, other))
    assert common_prefix(one, other) == common_prefix(other, one) == length


@pytest.mark.parametrize(
    ("chosen", "rejected", "counts"),
    [
        (row([1, 2, 3], [2]), row([1, 2, 4], [2]), True),
        # The same answer after another one that differs: its context differs.
        (row([1, 2, 3, 9], [3]), row([1, 2, 4, 9], [3]), True),
        (row([1, 2, 3], [2]), row([1, 2, 3], [2]), False),
        # One half has lost its answer.
        (row([1, 2, 3], [2]), row([1, 2, 4], []), False),
        # Only the shared prefix counts; the difference is in a user's words.
        (row([1, 2, 3], [1]), row([1, 2, 4], [1]), False),
        (row([1, 2], [1]), row([1, 2, 4], [1]), False),
        # One conversation continues the other with an answer.
        (row([1, 2], [1]), row([1, 2, 4, 5], [1, 3]), True),
        # The first token is no target.
        (row([1, 2], [0]), row([3, 2], [0]), False),
    ],
)
def test_difference_counts(chosen, rejected, counts):
    prefix = common_prefix(chosen, rejected)
    assert difference_counts(chosen, rejected, prefix) == counts
    assert difference_counts(rejected, chosen, prefix) == counts


def test_least_limit_is_where_cutting_loses_the_difference():
    """Compared with `difference_counts` of the cut rows, for random rows and every limit."""
    random = np.random.default_rng(0)
    checked = 0
    for _ in range(2000):
        shared = random.integers(0, 5)
        prefix = (random.integers(0, 2, shared).tolist(), random.integers(0, 2, shared).tolist())
        lengths = random.integers(0, 6, 2)
        chosen, rejected = (
            TokenizedRow(*(prefix[part] + random.integers(0, 2, length).tolist() for part in (0, 1)))
            for length in lengths
        )
        whole = common_prefix(chosen, rejected)
        if not difference_counts(chosen, rejected, whole):
            continue
        least = least_limit(chosen, rejected, whole)
        for limit in range(1, max(len(chosen.tokens), len(rejected.tokens)) + 1):
            one, other = (TokenizedRow(row.tokens[:limit], row.mask[:limit]) for row in (chosen, rejected))
            assert difference_counts(one, other, common_prefix(one, other)) == (limit >= least)
            checked += 1
    assert checked > 1000


@pytest.mark.parametrize(
    ("counted", "prefix", "start"),
    [([4, 5], 4, 4), ([4, 5], 5, 4), ([1, 4, 5], 4, 4), ([1, 2, 3], 3, 1), ([0, 1], 1, 0), ([3], 2, 2)],
)
def test_answers_that_begin_the_same_begin_before_the_first_difference(counted, prefix, start):
    assert answer_start(row([1] * 6, counted), prefix) == start


def rendered(messages: list[dict]) -> TokenizedRow:
    """A template that renders roles and stripped contents, and no other key; a token is a character."""
    text = "".join(f"{message['role'][0]}{message['content'].strip()}|" for message in messages)
    return TokenizedRow([ord(letter) for letter in text], [1] * len(text))


def scored(content: str, score: float) -> dict:
    return {"role": "assistant", "content": content, "score": score}


QUESTION, GOOD = conversation("Q", "good")
LATER, LATER_TOO = ({"role": "user", "content": text} for text in ("And?", "Why?"))


def prompts_of(chosen: list[dict], rejected: list[dict]) -> None:
    check_prompts(PreferenceRow(chosen=chosen, rejected=rejected), rendered(rejected), rendered)


@pytest.mark.parametrize(
    ("chosen", "rejected"),
    [
        ([QUESTION, GOOD], [QUESTION, {**GOOD, "content": "bad"}]),
        # Users react to answers that differ.
        ([QUESTION, GOOD, LATER, GOOD], [QUESTION, {**GOOD, "content": "bad"}, LATER_TOO, GOOD]),
        ([QUESTION, scored("same", 1), LATER, GOOD], [QUESTION, scored("same", 2), LATER, scored("bad", 0)]),
    ],
)
def test_prompts_are_equal_up_to_a_rendered_difference(chosen, rejected):
    prompts_of(chosen, rejected)


@pytest.mark.parametrize(
    ("other", "keys"),
    [(scored("same", 2), "'score'"), ({"role": "assistant", "content": "same "}, "'content', 'score'")],
)
def test_a_difference_that_is_not_rendered_does_not_make_prompts_of_two(other, keys):
    with pytest.raises(RowError) as caught:
        prompts_of([QUESTION, scored("same", 1), LATER, GOOD], [QUESTION, other, LATER_TOO, GOOD])
    assert str(caught.value) == (
        "the prompts differ: the chat template renders message 2 of 'chosen' (user) and of 'rejected' (user) "
        f"differently, which differ in 'content'; messages before them differ in {keys}, which it does not render"
    )


def test_keys_of_a_prompt_that_are_not_rendered_may_differ():
    prompts_of([{**QUESTION, "id": 1}, GOOD], [{**QUESTION, "id": 2}, {**GOOD, "content": "bad"}])


def test_keys_of_a_prompt_that_are_rendered_must_be_equal():
    def with_names(messages: list[dict]) -> TokenizedRow:
        text = "".join(f"{message.get('name', '')}:{message['content']}|" for message in messages)
        return TokenizedRow([ord(letter) for letter in text], [1] * len(text))

    chosen, rejected = [{**QUESTION, "name": "Ann"}, GOOD], [QUESTION, {**GOOD, "content": "bad"}]
    with pytest.raises(RowError) as caught:
        check_prompts(PreferenceRow(chosen=chosen, rejected=rejected), with_names(rejected), with_names)
    assert str(caught.value) == (
        "the prompts differ: the chat template renders message 0 of 'chosen' (user) and of 'rejected' (user) "
        "differently, which differ in 'name'"
    )


def reason(chosen: list[dict], rejected: list[dict]) -> str:
    return no_difference(PreferenceRow(chosen=chosen, rejected=rejected), rendered(chosen), rendered(rejected))


def test_reason_of_equal_texts_names_the_other_keys():
    assert reason([QUESTION, scored("same", 9.0)], [QUESTION, scored("same", 1.0)]) == (
        "the answers have the same text: 'chosen' and 'rejected' differ only in 'score', which the chat template does "
        "not render"
    )


def test_reason_of_a_text_that_the_template_drops():
    assert reason([QUESTION, GOOD], [QUESTION, {**GOOD, "content": "good\n"}]) == (
        "the chat template renders 'chosen' and 'rejected' the same: it drops their difference in 'content'"
    )


def test_reason_of_messages_that_the_template_drops():
    question, answer = row([1], []), row([1, 2], [1])
    halves = PreferenceRow(chosen=[QUESTION, GOOD], rejected=[QUESTION, GOOD, LATER])
    assert no_difference(halves, answer, answer).endswith("it drops their difference in the number of messages")
    assert no_difference(halves, question, answer) == (
        "no token of 'chosen' counts: the assistant turns are empty, or the mask (--mask) does not find them"
    )
    assert "no token of 'chosen' and of 'rejected' counts" in no_difference(halves, question, question)


def test_reason_of_a_difference_outside_of_what_counts():
    halves = PreferenceRow(chosen=[QUESTION, GOOD], rejected=[QUESTION, GOOD, LATER])
    assert no_difference(halves, row([1, 2], [1]), row([1, 2, 3], [1])) == (
        "the tokens that count are the same: 'chosen' and 'rejected' differ only outside of them"
    )


def test_a_prefix_ends_where_a_token_counts_in_one_row_only():
    """With --last_turn_only an answer may be the last one of its half alone."""
    chosen, rejected = TokenizedRow([1, 2, 3, 4], [0, 0, 1, 1]), TokenizedRow([1, 2, 3, 5], [0, 1, 1, 1])
    assert common_prefix(chosen, rejected) == 1
    assert common_prefix(chosen, chosen) == 4


def test_equal_rows_with_different_masks_teach_nothing():
    one, other = TokenizedRow([1, 2, 3], [0, 0, 1]), TokenizedRow([1, 2, 3], [0, 1, 1])
    assert not difference_counts(one, other, common_prefix(one, other))
