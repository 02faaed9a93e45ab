"""Shapes whose answers are texts: names of their columns, and damaged rows."""

from __future__ import annotations

import pytest

from minimind.data.shapes import parse_rows
from minimind.data.sources import RowError
from tests.conftest import conversation, pair

GOOD = pair("What do horses eat?", "Hay.", "Who cares.")
TEXTS = {"chosen": "Hay.", "rejected": "Who cares."}


def transcript(*texts: str) -> str:
    return "".join(f"\n\n{('Human', 'Assistant')[index % 2]}: {text}" for index, text in enumerate(texts))


# shape -> ways to write the same pair
WAYS = {
    "trl": (
        {"question": "What do horses eat?", **TEXTS},
        {"query": "What do horses eat?", "chosen_response": "Hay.", "rejected_response": "Who cares."},
        {"input": "What do horses eat?", "response_chosen": "Hay.", "response_rejected": "Who cares.", "history": None},
        {"question": "What do horses eat?", "response_j": "Hay.", "response_k": "Who cares."},
        {"prompt": [{"role": "user", "content": "What do horses eat?"}], **TEXTS},
        {"prompt": transcript("What do horses eat?", ""), "chosen": " Hay.", "rejected": " Who cares."},
    ),
    "alpaca": (
        {"instruction": "What do horses eat?", "output": ["Hay.", "Who cares."]},
        {"instruction": "What do horses eat?", "input": None, **TEXTS, "history": []},
        {
            "instruction": "What do horses",
            "input": "eat?",
            "chosen_response": "Hay.",
            "rejected_response": "Who cares.",
        },
    ),
    "hh": ({half: transcript("What do horses eat?", text) for half, text in TEXTS.items()},),
}


@pytest.mark.parametrize(("name", "row"), [(name, row) for name, rows in WAYS.items() for row in rows])
def test_ways_to_write_texts(name, row):
    (read,) = parse_rows(row)
    question = row["instruction"] + "\n" + row["input"] if row.get("instruction") and row.get("input") else ""
    expected = pair(question or "What do horses eat?", "Hay.", "Who cares.")
    assert (read.shape, read.chosen, read.rejected, read.unused) == (name, *expected.values(), ())


def test_earlier_turns():
    turns = [["Hi", "Hello"]]
    for row in ({"question": "q", **TEXTS}, {"instruction": "q", **TEXTS}):
        (read,) = parse_rows({**row, "history": turns})
        assert read.chosen == conversation("Hi", "Hello", "q", "Hay.")


def test_transcripts_are_split_at_their_last_common_turn():
    (row,) = parse_rows({half: transcript("Hi", "Hello", "q", text, "more", "end") for half, text in TEXTS.items()})
    assert row.chosen == conversation("Hi", "Hello", "q", "Hay.", "more", "end")
    assert row.rejected == conversation("Hi", "Hello", "q", "Who cares.", "more", "end")


def test_a_column_beside_the_answers_is_counted():
    (row,) = parse_rows({"instruction": "q", "output": "the best answer", **TEXTS})
    assert row.unused == ("output",)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (
            {"prompt": "q", "chosen": "Hay.", "rejected": 3},
            "read as TRL's texts: 'rejected' is neither a text nor a list",
        ),
        ({"prompt": 3, **TEXTS}, "read as TRL's texts: 'prompt' is neither a list of messages nor a text: 3"),
        ({"prompt": "<|im_start|>user\nHi", **TEXTS}, "read as TRL's texts: 'prompt' is written as a chat template"),
        ({"prompt": transcript("q", "a"), **TEXTS}, "read as TRL's texts: 'prompt' is a transcript that ends with an"),
        (
            {"prompt": "q", "history": "x", **TEXTS},
            "read as TRL's texts: 'history' is not a list of [question, answer]",
        ),
        (
            TEXTS,
            "read as HH-RLHF: 'chosen' and 'rejected' are no transcripts, which begin with 'Human:', and no column has",
        ),
        (
            {"chosen": transcript("x", "y"), "rejected": "y"},
            "read as HH-RLHF: 'chosen' and 'rejected' are no transcripts",
        ),
        ({"chosen": transcript("x", "y"), "rejected": transcript("z", "y")}, "read as HH-RLHF: the prompts differ"),
        (
            {"chosen": transcript("x", "y"), "rejected": transcript("x")},
            "read as HH-RLHF: 'rejected' is a transcript that",
        ),
        ({"instruction": "q", "output": "a"}, "read as Alpaca: 'output' is one answer, not two, [better, worse], and"),
        (
            {"instruction": "q", "output": ["a", "b", "c"]},
            "read as Alpaca: 'output' has not two answers, [better, worse], but 3",
        ),
        (
            {"instruction": "q", "output": ["a", 3]},
            "read as Alpaca: 'rejected' is neither a text nor a list of messages",
        ),
        (
            {"instruction": "q", "output": ["a", "b"], **TEXTS},
            "read as Alpaca: both 'output' and other columns have a better",
        ),
        ({"instruction": ["q"], "output": ["a", "b"]}, "read as Alpaca: 'instruction' is not a text"),
        ({"instruction": "q", "input": 3, "output": ["a", "b"]}, "read as Alpaca: 'input' is not a text"),
        (
            {"instruction": "q", "chosen": "a", "rejected": None},
            "looks like Alpaca: 'instruction' and 'chosen' are there",
        ),
        (
            {"instruction": "q", "chosen": "a", "rejected_response": "b"},
            "read as Alpaca: 'chosen' and 'rejected' are not both",
        ),
    ],
)
def test_damaged_row(row, reason):
    with pytest.raises(RowError) as caught:
        parse_rows(row)
    assert str(caught.value).startswith(reason)
