"""Helpers of the conversions: two answers to a text, earlier turns, and texts that are no plain prompt."""

from __future__ import annotations

import json
import re

import pytest

from minimind.data.shapes import parse_rows
from minimind.data.shapes.halves import answer, half_columns, history, text_pair
from minimind.data.sources import RowError
from tests.conftest import conversation


def read(question: object, chosen: object = "a", rejected: object = "b", **row: object):
    return text_pair(row, place="question", question=question, chosen=chosen, rejected=rejected)


def test_two_texts_answer_a_text():
    row = read("q", history=[["x", "y"], ["v", "w"]], system="s", note=1)
    before = [{"role": "system", "content": "s"}, *conversation("x", "y", "v", "w")]
    assert row.chosen == [*before, *conversation("q", "a")]
    assert row.rejected == [*before, *conversation("q", "b")]
    assert row.unused == ("note",)


def test_a_blank_prompt_is_refused():
    with pytest.raises(RowError, match="'question' is blank"):
        read(" \n")


def test_white_space_of_texts_is_kept():
    assert read(" q\n", "\n\na").chosen == conversation(" q\n", "\n\na")


def test_a_prompt_that_is_the_json_text_of_messages():
    text = '[{"role": "system", "content": "s"}, {"role": "user", "content": "q"}]'
    assert read(text).chosen == [{"role": "system", "content": "s"}, *conversation("q", "a")]


def test_a_prompt_that_is_the_json_text_of_turns_or_of_one_message():
    for text in ('[{"from": "human", "value": "q"}]', '{"role": "user", "content": "q"}'):
        assert read(text).chosen == conversation("q", "a")
    for text in ('{"role": "admin"}', "{'content': 5} is what?", "[{'role': 'a'}][0] is?"):
        assert read(text).chosen == conversation(text, "a")


def test_a_prompt_that_is_messages_as_python_writes_them_is_refused():
    for text in ("[{'role': 'user', 'content': 'q'}]", "{'from': 'human', 'value': 'q'}"):
        with pytest.raises(RowError, match=r"'question' is a message or a list as Python writes it.*json\.dumps"):
            read(text)


def test_an_answer_in_a_transcript_may_have_further_turns():
    row = read(TRANSCRIPT, " a", " b\n\nHuman: z\n\nAssistant: c")
    assert row.rejected == conversation("x", "y", "q", "b", "z", "c")
    with pytest.raises(RowError, match="'rejected' is a transcript that ends with a human turn"):
        read(TRANSCRIPT, " a", " b\n\nHuman: z")


TRANSCRIPT = "\n\nHuman: x\n\nAssistant: y\n\nHuman: q\n\nAssistant:"


@pytest.mark.parametrize(
    ("question", "chosen"),
    [
        (TRANSCRIPT, " a"),
        (TRANSCRIPT, "\n\nAssistant: a"),
        (TRANSCRIPT, f"{TRANSCRIPT} a"),
        (TRANSCRIPT.removesuffix("\n\nAssistant:"), "\n\nAssistant: a"),
    ],
)
def test_a_prompt_that_is_a_transcript(question, chosen):
    row = read(question, chosen, chosen.replace(" a", " b"))
    assert (row.chosen, row.rejected) == (conversation("x", "y", "q", "a"), conversation("x", "y", "q", "b"))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", "<|im_start|>"),
        ("<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHi", "<|begin_of_text|>"),
        ("<s>[INST] Hi [/INST]", "<s>"),
        (" [INST] Hi [/INST]", "[INST]"),
        ("<start_of_turn>user\nHi", "<start_of_turn>"),
        ("### Instruction:\nHi\n\n### Response:", "### Instruction:"),
        ("Below is an instruction that describes a task.\n\n### Response:\n", "### Response:"),
        ("USER: Hi\nASSISTANT:", "ASSISTANT:"),
        ("用户：你好\n助手：", "助手："),
    ],
)
def test_what_a_chat_template_has_written_is_no_prompt(text, found):
    with pytest.raises(
        RowError, match=f"'question' is written as a chat template writes it \\({re.escape(repr(found))}"
    ):
        read(text)


@pytest.mark.parametrize(
    "text",
    [
        "What does <|im_start|> mean?",
        "Continue: Human: Hi, Assistant:",
        "a < b",
        "User: what is this?",
        "Explain [INST]",
    ],
)
def test_words_about_markers_are_a_prompt(text):
    assert read(text).chosen == conversation(text, "a")


def test_answers_that_repeat_the_prompt_are_refused():
    question = "What do horses eat?"
    with pytest.raises(RowError, match="'chosen' and 'rejected' begin with 'question'; give the answers alone"):
        read(question, f"{question} Hay.", f" {question} Who cares.")
    # One of them may, and so may answers to a few words.
    assert read(question, f"{question} Hay.").chosen == conversation(question, f"{question} Hay.")
    assert read("Hi", "Hi!", "Hi you!").chosen == conversation("Hi", "Hi!")
    # As messages they say what they mean.
    halves = ([{"role": "assistant", "content": f"{question} {text}"}] for text in ("Hay.", "Who cares."))
    assert read(question, *halves).chosen == conversation(question, f"{question} Hay.")


def test_answers_may_be_messages():
    (turn,) = answer("chosen", {"role": "assistant", "content": "a", "weight": 1})
    assert turn == {"role": "assistant", "content": "a", "weight": 1}
    assert answer("chosen", [turn, turn]) == [turn, turn]
    for value in (3, None, True):
        with pytest.raises(RowError, match=f"'chosen' is neither a text nor a list of messages: {value}"):
            answer("chosen", value)


@pytest.mark.parametrize("value", ["x", {"a": 1}, [["x"]], [["x", 1]], [["a", "b", "c"]], ["ab"], 3])
def test_history_of_another_form_is_refused(value):
    with pytest.raises(RowError, match="'history' is not a list of"):
        history("history", value)


@pytest.mark.parametrize("value", [None, [], "", {}])
def test_no_history(value):
    assert history("history", value) == []


def test_names_of_the_halves():
    assert half_columns({"chosen": "", "rejected": "x", "response_j": "y"}) == ("chosen", "rejected")
    assert half_columns({"response_j": "y", "response_k": "z"}) == ("response_j", "response_k")
    with pytest.raises(RowError, match="there are two pairs of answers"):
        half_columns({"chosen": "x", "rejected": "y", "chosen_response": "x", "rejected_response": "y"})
    with pytest.raises(RowError, match="'chosen' and 'rejected' are not both there"):
        half_columns({"chosen": "x", "rejected_response": "y"})


def test_listed_answers_that_are_json_texts_of_messages_are_refused():
    """Of a text without messages, or whose last message is not the assistant's, it is what the assistant says."""
    messages = '[{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]'
    for text in (messages, '{"role": "assistant", "content": "a"}', '[{"from": "gpt", "value": "a"}]'):
        for row in (
            {"prompt": "q", "responses": ["plain", text], "scores": [2, 1]},
            {"prompt": "q", "responses": json.dumps([text, "plain"]), "scores": "[2, 1]"},
            {"instruction": "q", "output": ["plain", text]},
        ):
            with pytest.raises(RowError, match=r"answer [01] of '\w+' is the JSON text of messages"):
                parse_rows(row)
    for text in ('[{"role": "user", "content": "q"}]', '[{"name": "f"}]', "[1] is the first"):
        (kept,) = parse_rows({"instruction": "q", "output": ["plain", text]})
        assert kept.rejected == conversation("q", text)
