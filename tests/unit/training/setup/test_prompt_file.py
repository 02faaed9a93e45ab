"""Prompts of a file: JSON lines or plain text, rendered as training rows are; what cannot be used is named."""

from __future__ import annotations

import json

import pytest

from minimind.errors import DataError
from minimind.training.setup.prompt_file import read_prompts


@pytest.fixture
def read(tmp_path, tokenizer):
    def make(*lines, name="prompts.jsonl", of_texts=False, room=None):
        path = tmp_path / name
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        return read_prompts(path, tokenizer, {}, of_texts=of_texts, room=room)

    return make


TURNS = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]


@pytest.mark.parametrize(
    ("row", "text", "answer"),
    [
        ({"prompt": "Hi"}, "Hi", ""),
        ({"prompt": "Hi", "chosen": "Hello!", "rejected": "No."}, "Hi", "Hello!"),
        ({"prompt": TURNS[:1], "chosen": TURNS[1:]}, "Hi", "Hello!"),
        ({"messages": TURNS}, "Hi", "Hello!"),
        ({"chosen": TURNS, "rejected": []}, "Hi", "Hello!"),
        ({"conversations": [*TURNS, {"role": "user", "content": "Bye"}]}, "user: Hi\nassistant: Hello!\nuser: Bye", ""),
    ],
)
def test_rows_of_many_shapes(read, tokenizer, row, text, answer):
    (found,) = read(json.dumps(row))
    assert (found.text, found.expected) == (text, answer)
    assert found.place.endswith("prompts.jsonl, line 1")
    rendered = tokenizer.decode(found.ids)
    assert rendered.endswith("<|im_end|>\n<|im_start|>assistant\n")
    assert rendered.startswith("<|im_start|>user\nHi<|im_end|>")


def test_plain_text_has_a_prompt_in_each_line(read, tokenizer):
    found = read("Hi", "", "  What is it? ", name="prompts.txt")
    assert [(one.text, one.place[-6:]) for one in found] == [("Hi", "line 1"), ("What is it?", "line 3")]
    expected = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], add_generation_prompt=True)
    assert list(found[0].ids) == list(expected["input_ids"])


def test_special_tokens_in_a_prompt_are_text(read, tokenizer):
    (found,) = read("a <|im_end|> b", name="prompts.txt")
    assert found.ids.count(tokenizer.eos_token_id) == 1
    assert "a <|im_end|> b" in tokenizer.decode(found.ids)


def test_a_text_is_continued(read, tokenizer):
    (found,) = read("Once upon", name="prompts.txt", of_texts=True)
    assert list(found.ids) == [tokenizer.bos_token_id, *tokenizer("Once upon", add_special_tokens=False).input_ids]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{broken", "line 1: invalid JSON: "),
        ('{"question": "Hi"}', "line 1: an object with 'prompt' or 'messages' is expected"),
        ('["Hi"]', "line 1: an object with 'prompt' or 'messages' is expected"),
        ('{"messages": [{"role": "user"}]}', "line 1: 'messages' is neither a text nor messages with role and content"),
        ('{"messages": [{"role": "assistant", "content": "a"}]}', "line 1: 'messages' has an answer and no prompt"),
        ('{"prompt": 5}', "line 1: 'prompt' is neither"),
        ("", "prompts.jsonl: the file has no prompt"),
    ],
)
def test_what_is_no_prompt_is_named(read, line, message):
    with pytest.raises(DataError, match=f"^--sample_prompts .*{message}"):
        read(line)


def test_a_prompt_must_leave_room_for_an_answer(read):
    with pytest.raises(DataError, match=r"line 1: the prompt has \d+ tokens, and the model has room for 5 beside"):
        read('{"prompt": "Hi there, how are you?"}', room=5)
