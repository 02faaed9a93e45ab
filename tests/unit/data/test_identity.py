"""Hashes of prompts and answers: what is the same for them, and what is not."""

from __future__ import annotations

import dataclasses
import datetime

import pytest

from minimind.data.identity import identity_of, shared_messages
from minimind.data.rows import PreferenceRow, checked_row
from tests.conftest import conversation, pair

WORDS = frozenset({"role", "content", "reasoning_content", "enable_thinking", "tools"})
ROW = checked_row(**pair("2 + 2?", "4", "5"))


def same(other: PreferenceRow, row: PreferenceRow = ROW) -> tuple[bool, ...]:
    """Whether prompt, chosen and rejected answer have the same hashes as those of a row."""
    return tuple(one == two for one, two in zip(identity_of(row, WORDS), identity_of(other, WORDS), strict=True))


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        (checked_row(**pair("2 + 2?", "4", "5")), (True, True, True)),
        (checked_row(**pair("2 + 3?", "4", "5")), (False, True, True)),
        (checked_row(**pair("2 + 2?", "four", "5")), (True, False, True)),
        (checked_row(**pair("2 + 2?", "4", "six")), (True, True, False)),
        (checked_row(**pair("2 + 2? ", "4", "5")), (False, True, True)),
        (dataclasses.replace(ROW, tools=[{"name": "add"}]), (False, True, True)),
        (dataclasses.replace(ROW, template_kwargs={"enable_thinking": False}), (False, True, True)),
        # What the template does not read, and columns of no use.
        (dataclasses.replace(ROW, template_kwargs={"mood": 1}), (True, True, True)),
        (dataclasses.replace(ROW, unused=("id",), shape="trl"), (True, True, True)),
        (dataclasses.replace(ROW, chosen=[{**one, "score": 3} for one in ROW.chosen]), (True, True, True)),
        (dataclasses.replace(ROW, chosen=[{**one, "reasoning_content": "?"} for one in ROW.chosen]), (False,) * 3),
    ],
)
def test_what_is_the_same(other, expected):
    assert same(other) == expected


def test_swapped_answers_have_each_other_s_hashes():
    prompt, chosen, rejected = identity_of(ROW, WORDS)
    assert identity_of(checked_row(**pair("2 + 2?", "5", "4")), WORDS) == (prompt, rejected, chosen)
    assert len({prompt, chosen, rejected}) == 3
    assert all(0 <= value < 2**64 for value in (prompt, chosen, rejected))


def test_the_prompt_ends_before_the_first_message_that_differs():
    """An earlier answer that both halves share is part of the prompt, and so the same question is another prompt."""
    turns = conversation("Hi", "Hello!", "2 + 2?", "4")
    later = PreferenceRow(chosen=turns, rejected=[*turns[:-1], {"role": "assistant", "content": "5"}])
    assert shared_messages(later, WORDS) == 3
    assert same(later) == (False, True, True)
    assert shared_messages(PreferenceRow(chosen=turns[:2], rejected=turns), WORDS) == 2


def test_values_of_typed_columns_have_hashes():
    tools = [{"name": "add", "since": datetime.date(2020, 1, 1)}]
    assert len(identity_of(dataclasses.replace(ROW, tools=tools), WORDS)) == 3
