"""Pairs as texts: what counts is marked, and nothing of a row is lost."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from minimind.inspection.texts import Run, read_answers, read_pair, spread
from tests.conftest import conversation, pair
from tests.unit.data.tables import ROWS, table_of

END = Run(text="<|im_end|>\n", counts=True)


@pytest.fixture
def table(load, write_rows):
    return load(write_rows(*ROWS, pair("Why?", "Because it rains.", "Because it snows.")), max_length=64)


def text(runs) -> str:
    return "".join(run.text for run in runs)


def test_prompt_and_answers_of_a_pair(table, tokenizer):
    one = read_pair(table, 0, tokenizer)
    assert one.place.endswith("pairs.jsonl, line 1")
    assert one.prompt == (
        Run(text="<|im_start|>user\nWhat is the colour of the sky?<|im_end|>\n<|im_start|>assistant\n", counts=False),
    )
    assert one.chosen == (Run(text="It is blue.<|im_end|>\n", counts=True),)
    assert one.rejected == (Run(text="Look yourself.<|im_end|>\n", counts=True),)
    assert one.tokens == (len(table[0].chosen), len(table[0].rejected))


def test_earlier_answers_count_and_answers_that_begin_the_same_are_whole(table, tokenizer):
    turns = read_pair(table, 1, tokenizer)
    assert [run.counts for run in turns.prompt] == [False, True, False]
    assert turns.prompt[1].text == "Good morning!<|im_end|>\n"
    assert text(read_pair(table, 3, tokenizer).chosen).startswith("Because it rains.")


def test_every_character_of_every_row_is_there(table, tokenizer):
    for index, row in enumerate((*ROWS, pair("Why?", "Because it rains.", "Because it snows."))):
        one = read_pair(table, index, tokenizer)
        for half in ("chosen", "rejected"):
            assert text((*one.prompt, *getattr(one, half))) == tokenizer.apply_chat_template(row[half], tokenize=False)


def test_a_space_that_a_tokenizer_drops_at_the_start_is_kept(table):
    """As tokenizers of SentencePiece do: a text of its own loses its first space."""

    class Dropping:
        def decode(self, tokens, **options):
            return "".join(f" w{token}" for token in tokens).removeprefix(" ")

    row = dataclasses.replace(table, tokens=np.arange(len(table.tokens), dtype=np.int32))
    runs = read_pair(row, 0, Dropping()).prompt + read_pair(row, 0, Dropping()).chosen
    assert text(runs) == " ".join(f"w{token}" for token in range(len(table[0].chosen)))


def test_answers_are_without_markers_and_later_turns(load, write_rows, tokenizer):
    turns = conversation("Hi", "Hello!", "And now?", "Bye.")
    row = {"chosen": turns, "rejected": [turns[0], {"role": "assistant", "content": "No!"}, *turns[2:]]}
    table = load(write_rows(row, ROWS[1]), max_length=64)
    assert read_answers(table, 0, tokenizer) == ("Hello!", "No!")
    assert read_answers(table, 1, tokenizer) == ("In Italy.", "Not here.")


def test_a_pair_that_was_cut_is_shown_as_it_is(load, write_rows, tokenizer):
    table = load(write_rows(pair("Why? " * 20, "Yes", "No")), max_length=12)
    one = read_pair(table, 0, tokenizer)
    assert (one.chosen, one.rejected, one.tokens) == ((), (), (12, 12))
    assert read_answers(table, 0, tokenizer) == ("", "")


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
