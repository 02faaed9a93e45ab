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


def test_a_file_must_be_readable(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        list(written_prompts(tmp_path / "none.txt"))
