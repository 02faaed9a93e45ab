"""Pairs as texts: what counts is marked, and nothing of a row is lost."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from minimind.data.encoding import TEXT, TURNS, EncodingOptions
from minimind.data.shapes import Items, ShapeOptions
from minimind.inspection.items import ITEMS
from minimind.inspection.texts import Run, read_answers, read_item, spread
from tests.conftest import conversation, pair
from tests.unit.data.tables import ROWS, table_of

PAIRS = ITEMS["pairs"]


@pytest.fixture
def load_alone(load):
    """Rows that stand alone, in rows of at most 40 tokens."""

    def call(path, items):
        options = EncodingOptions(mask=TEXT if items is Items.TEXTS else TURNS)
        return load(path, max_length=40, shapes=ShapeOptions(items=items), options=options, long_text="split")

    return call


@pytest.fixture
def table(load, write_rows):
    return load(write_rows(*ROWS, pair("Why?", "Because it rains.", "Because it snows.")), max_length=64)


def text(runs) -> str:
    return "".join(run.text for run in runs)


def test_prompt_and_answers_of_a_pair(table, tokenizer):
    one = read_item(table, 0, tokenizer, PAIRS)
    assert one.place.endswith("pairs.jsonl, line 1")
    assert one.parts["prompt"] == (
        Run(text="<|im_start|>user\nWhat is the colour of the sky?<|im_end|>\n<|im_start|>assistant\n", counts=False),
    )
    assert one.parts["chosen"] == (Run(text="It is blue.<|im_end|>\n", counts=True),)
    assert one.parts["rejected"] == (Run(text="Look yourself.<|im_end|>\n", counts=True),)
    assert one.tokens == {"chosen": len(table[0].chosen), "rejected": len(table[0].rejected)}


def test_earlier_answers_count_and_answers_that_begin_the_same_are_whole(table, tokenizer):
    turns = read_item(table, 1, tokenizer, PAIRS)
    assert [run.counts for run in turns.parts["prompt"]] == [False, True, False]
    assert turns.parts["prompt"][1].text == "Good morning!<|im_end|>\n"
    assert text(read_item(table, 3, tokenizer, PAIRS).parts["chosen"]).startswith("Because it rains.")


def test_every_character_of_every_row_is_there(table, tokenizer):
    for index, row in enumerate((*ROWS, pair("Why?", "Because it rains.", "Because it snows."))):
        one = read_item(table, index, tokenizer, PAIRS)
        for half in ("chosen", "rejected"):
            assert text((*one.parts["prompt"], *one.parts[half])) == tokenizer.apply_chat_template(
                row[half], tokenize=False
            )


def test_a_space_that_a_tokenizer_drops_at_the_start_is_kept(table):
    """As tokenizers of SentencePiece do: a text of its own loses its first space."""

    class Dropping:
        def decode(self, tokens, **options):
            return "".join(f" w{token}" for token in tokens).removeprefix(" ")

    row = dataclasses.replace(table, tokens=np.arange(len(table.tokens), dtype=np.int32))
    runs = read_item(row, 0, Dropping(), PAIRS).parts["prompt"] + read_item(row, 0, Dropping(), PAIRS).parts["chosen"]
    assert text(runs) == " ".join(f"w{token}" for token in range(len(table[0].chosen)))


def test_answers_are_without_markers_and_later_turns(load, write_rows, tokenizer):
    turns = conversation("Hi", "Hello!", "And now?", "Bye.")
    row = {"chosen": turns, "rejected": [turns[0], {"role": "assistant", "content": "No!"}, *turns[2:]]}
    table = load(write_rows(row, ROWS[1]), max_length=64)
    assert read_answers(table, 0, tokenizer, PAIRS) == ("Hello!", "No!")
    assert read_answers(table, 1, tokenizer, PAIRS) == ("In Italy.", "Not here.")


def test_a_pair_that_was_cut_is_shown_as_it_is(load, write_rows, tokenizer):
    table = load(write_rows(pair("Why? " * 20, "Yes", "No")), max_length=12)
    one = read_item(table, 0, tokenizer, PAIRS)
    assert (list(one.parts.values())[1:], list(one.tokens.values())) == ([(), ()], [12, 12])
    assert read_answers(table, 0, tokenizer, PAIRS) == ("", "")


@pytest.mark.parametrize(
    ("most", "expected"),
    [
        (10, [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]),
        (3, [(0, 0), (0, 2), (1, 1)]),
        (1, [(0, 0)]),
        (0, []),
    ],
)
def test_a_sample_is_spread_over_all_sources(most, expected):
    tables = [table_of(*[(3, 3, 0)] * number) for number in (3, 2)]
    found = [(int(table is tables[1]), index) for table, index in spread(tables, most)]
    assert found == expected


def test_no_pair_gives_no_sample():
    assert list(spread([table_of()], 10)) == []


def test_a_conversation_is_one_text_and_its_last_answer_is_read(load_alone, write_rows, tokenizer):
    turns = conversation("Hi", "Hello!", "And now?", "Bye.")
    table = load_alone(write_rows({"conversations": turns}), Items.CONVERSATIONS)
    one = read_item(table, 0, tokenizer, ITEMS["conversations"])
    assert text(one.parts["conversation"]) == tokenizer.apply_chat_template(turns, tokenize=False)
    assert [run.text for run in one.parts["conversation"] if run.counts] == ["Hello!<|im_end|>\n", "Bye.<|im_end|>\n"]
    assert one.tokens == {"conversation": len(table[0].chosen)}
    assert read_answers(table, 0, tokenizer, ITEMS["conversations"]) == ("Bye.",)


def test_a_text_that_makes_several_rows_says_which_is_shown(load_alone, write_rows, tokenizer):
    table = load_alone(write_rows({"text": "Horses eat hay. " * 8}, {"text": "Rain."}), Items.TEXTS)
    assert len(table) > 2
    places = [
        read_item(table, index, tokenizer, ITEMS["texts"]).place.split(", ", 1)[1] for index in (0, 1, len(table) - 1)
    ]
    assert places == ["line 1, row 1 of it", "line 1, row 2 of it", "line 2"]
    # The start token is predicted from nothing.
    runs = read_item(table, len(table) - 1, tokenizer, ITEMS["texts"]).parts["text"]
    assert [(run.text, run.counts) for run in runs] == [("<|im_start|>", False), ("Rain.<|im_end|>", True)]
    assert read_answers(table, len(table) - 1, tokenizer, ITEMS["texts"]) == ("Rain.",)
