"""Prompts as they are written, without a tokenizer; how they are refused is in test_prompt_file.py."""

from __future__ import annotations

import json

import pytest

from minimind.data.prompt_lines import WrittenPrompt, written_prompts
from minimind.errors import DataError


def test_turns_answers_and_places_of_rows_and_of_plain_lines(tmp_path):
    user = {"role": "user", "content": "Hi"}
    rows, lines = tmp_path / "prompts.jsonl", tmp_path / "prompts.txt"
    given = {"chosen": [user, {"role": "assistant", "content": "Hello!"}], "rejected": []}
    rows.write_text(f'{{"prompt": "Hi"}}\n\n{json.dumps(given)}\n', encoding="utf-8")
    lines.write_text("Hi \n", encoding="utf-8")
    assert [*written_prompts(rows), *written_prompts(lines)] == [
        WrittenPrompt(turns=[user], answer="", place=f"{rows}, line 1"),
        WrittenPrompt(turns=[user], answer="Hello!", place=f"{rows}, line 3"),
        WrittenPrompt(turns=[user], answer="", place=f"{lines}, line 1"),
    ]


def test_the_kind_of_a_file_is_told_by_its_ending_in_capitals_too(tmp_path):
    path = tmp_path / "PROMPTS.JSONL"
    path.write_text('{"prompt": "Hi"}', encoding="utf-8")
    assert [one.turns[0]["content"] for one in written_prompts(path)] == ["Hi"]


@pytest.mark.parametrize(
    ("value", "answer"),
    [
        (42, "42"),
        (0, "0"),
        ("", ""),
        (None, ""),
        ([{"role": "assistant", "content": "a"}], "a"),
        ({"content": "a"}, "a"),
        ([{"content": None}], ""),
        ([], "b"),
    ],
)
def test_an_answer_is_a_text_a_number_or_a_message(tmp_path, value, answer):
    path = tmp_path / "prompts.jsonl"
    path.write_text(
        json.dumps({"prompt": "Hi", "answer": value, "response": "b" if value == [] else None}), encoding="utf-8"
    )
    assert [one.answer for one in written_prompts(path)] == [answer]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"prompt": "Hi", "answer": true}', "'answer' is neither a text nor messages"),
        ('{"prompt": "Hi", "answer": [{"content": [{}]}]}', "'answer' is neither a text nor messages"),
        ('{"chosen": "Yes.", "rejected": "No."}', "'chosen' is an answer, and no column has the prompt"),
        ('{"prompt": "\\ud800"}', "lone surrogate"),
        ("[" * 100_000, "recursion depth"),
    ],
)
def test_what_is_no_prompt_is_refused_with_its_line(tmp_path, line, reason):
    path = tmp_path / "prompts.jsonl"
    path.write_text(f"\n{line}\n", encoding="utf-8")
    with pytest.raises(DataError, match=f"prompts.jsonl, line 2: .*{reason}"):
        list(written_prompts(path))


def test_a_file_must_be_readable(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        list(written_prompts(tmp_path / "none.txt"))
