"""Labelled answers in tokens: the answer, the answer to another prompt behind the same prompt, and what is cut."""

from __future__ import annotations

import pytest

from minimind.data.encoder import build_encoder
from minimind.data.encoding import EncodingOptions
from minimind.data.labelled import encode_answer, others_of
from minimind.data.packs import pack, pad
from minimind.data.pairs import LengthLimit
from minimind.data.rows import AnswerRow
from minimind.data.shapes import Items, ShapeOptions
from minimind.data.sources import RowError, open_source
from minimind.data.table_cache import load_table
from tests.conftest import conversation, pair

SYSTEM = {"role": "system", "content": "Be kind."}
ROWS = [
    AnswerRow(messages=conversation(question, answer), label=label)
    for question, answer, label in (
        ("What do horses eat?", "Hay.", True),
        ("What do horses eat?", "Who cares.", False),
        ("Where is Rome?", "In Italy.", True),
    )
]
LAST_TURN = EncodingOptions(last_turn_only=True)


@pytest.fixture
def encoder(tokenizer):
    return build_encoder(tokenizer, LAST_TURN)


@pytest.fixture
def encoded(encoder):
    def run(row, others=None, max_length=1000, cut_prompt=False):
        return encode_answer(row, 1, encoder, LengthLimit(max_length=max_length, cut_prompt=cut_prompt), others)

    return run


def counted(tokenizer, row) -> str:
    return tokenizer.decode([token for token, counts in zip(row.tokens, row.mask, strict=True) if counts])


def test_the_other_answer_is_that_of_the_next_row_with_another_prompt():
    assert [row.messages[-1]["content"] for row in others_of(ROWS, 0)] == ["In Italy."]
    assert [row.messages[-1]["content"] for row in others_of(ROWS, 2)] == ["Hay.", "Who cares."]
    assert list(others_of(ROWS[:2], 0)) == []


def test_answers_to_one_prompt_get_other_answers_in_turn():
    """Each answer of a file of pairs is mismatched once: the desirable ones with desirable ones."""
    rows = [
        AnswerRow(messages=conversation(f"Number {place}?", f"{kind} {place}"), label=kind == "good")
        for place in range(4)
        for kind in ("good", "bad")
    ]
    first = [next(others_of(rows, place)).messages[-1]["content"] for place in range(8)]
    assert first == ["good 1", "bad 1", "good 2", "bad 2", "good 3", "bad 3", "good 0", "bad 0"]
    # More answers to one prompt than there are others.
    many = [*rows[:2], *(AnswerRow(messages=conversation("Who?", f"{place}"), label=True) for place in range(5))]
    first = [next(others_of(many, place)).messages[-1]["content"] for place in range(7)]
    assert first == ["0", "1", "good 0", "bad 0", "good 0", "bad 0", "good 0"]


def test_a_mismatched_row_is_this_prompt_with_another_answer(encoded, encoder, tokenizer):
    pair_of_rows = encoded(ROWS[0], others_of(ROWS, 0))
    assert pair_of_rows.chosen == encoder.encode(ROWS[0].messages, 1)
    assert pair_of_rows.rejected == encoder.encode(conversation("What do horses eat?", "In Italy."), 1)
    assert counted(tokenizer, pair_of_rows.chosen) == "Hay.<|im_end|>\n"
    assert counted(tokenizer, pair_of_rows.rejected) == "In Italy.<|im_end|>\n"
    assert pair_of_rows.prefix == pair_of_rows.prompt_length
    assert pair_of_rows.problem is None


def test_only_the_labelled_answer_counts(encoded, tokenizer):
    row = AnswerRow(messages=[SYSTEM, *conversation("q", "first", "r", "second")], label=False)
    alone = encoded(row)
    assert counted(tokenizer, alone.chosen) == "second<|im_end|>\n"
    assert alone.least_limit == alone.chosen.mask.index(1) + 1 == alone.prompt_length + 1


def test_without_a_mismatched_row_a_token_stands_for_it(encoded):
    alone = encoded(ROWS[0])
    assert alone.rejected == (alone.chosen.tokens[:1], [0])
    assert alone.lengths == (len(alone.chosen.tokens), 1)


def test_a_prompt_without_another_one_is_refused(encoded):
    with pytest.raises(RowError, match=r"no row around it has another prompt, .* --loss bco or apo_zero_unpaired"):
        encoded(ROWS[0], others_of(ROWS[:2], 0))


def test_an_answer_that_cannot_follow_the_prompt_gives_way_to_the_next(encoder, encoded, monkeypatch):
    refused, encode = ROWS[2].messages[-1], encoder.encode

    def strict(messages, *rest):
        if messages[-1] is refused:
            raise RowError("no such tool")
        return encode(messages, *rest)

    monkeypatch.setattr(encoder, "encode", strict)
    other = AnswerRow(messages=conversation("Who?", "Me."), label=True)
    found = encoded(ROWS[0], others_of([*ROWS, other], 0))
    assert found.rejected == encode(conversation("What do horses eat?", "Me."), 1)


def test_cutting_leaves_out_answers_of_which_nothing_counts(encoded):
    whole = encoded(ROWS[0], others_of(ROWS, 0))
    least = whole.least_limit
    kept, lost = (encoded(ROWS[0], others_of(ROWS, 0), limit) for limit in (least, least - 1))
    assert (kept.end_cut, kept.is_lost, sum(kept.chosen.mask)) == (True, False, 1)
    assert (lost.end_cut, lost.is_lost) == (True, True)
    assert kept.lengths == (len(whole.chosen.tokens), least)


def test_turns_of_the_prompt_can_be_left_out_in_both_rows(encoded, encoder):
    turns = conversation("What do horses eat?", "Oats and straw.", "And what do cows eat?", "Grass.")
    row = AnswerRow(messages=[SYSTEM, *turns], label=True)
    short = [SYSTEM, *turns[2:]]
    limit = len(encoder.encode(short, 1).tokens)
    found = encoded(row, others_of([row, ROWS[2]], 0), limit, cut_prompt=True)
    assert (found.prompt_cut, found.end_cut) == (True, False)
    assert found.chosen == encoder.encode(short, 1)
    assert found.rejected.tokens == encoder.encode([*short[:-1], ROWS[2].messages[-1]], 1).tokens[:limit]


def test_an_empty_answer_is_a_bad_row(encoder, encoded, monkeypatch):
    whole = encoder.encode_compared

    def nothing(*given):
        compared = whole(*given)
        return type(compared)(row=compared.row._replace(mask=[0] * len(compared.row.mask)), differs=False)

    monkeypatch.setattr(encoder, "encode_compared", nothing)
    found = encoded(ROWS[0])
    assert found.problem.startswith("no token of the answer counts")
    assert (found.is_lost, found.least_limit) == (False, 0)


@pytest.fixture
def table_of_rows(tokenizer, write_rows, tmp_path):
    def load(items, *rows):
        return load_table(
            open_source(write_rows(*rows)),
            tokenizer,
            max_length=100,
            num_workers=0,
            cache_dir=tmp_path / "cache",
            options=LAST_TURN,
            shapes=ShapeOptions(items=items),
        )

    return load


LINES = [{"messages": row.messages, "label": row.label} for row in ROWS]


def test_a_table_of_answers_has_their_labels(table_of_rows):
    table = table_of_rows(Items.MISMATCHED, *LINES, pair("Who?", "Me.", "You."), {"prompt": "q", "label": 1})
    assert table.labels.tolist() == [1, 0, 1, 1, 0]
    assert table.lines.tolist() == [1, 2, 3, 4, 4]
    assert (table.is_labelled, table.items, table[1].label) == (True, "answers", False)
    assert dict(table.shapes) == {"unpaired": 3, "minimind": 1}
    assert [row.line for row in table.bad] == [5]
    # The same prompt; answers and labels of their own.
    identities = table.identities.reshape(-1, 3).tolist()
    assert identities[0][0] == identities[1][0] != identities[2][0]
    assert [label for *_, label in identities] == [1, 0, 1, 1, 0]


def test_what_rows_become_is_part_of_the_key(table_of_rows):
    keys = {table_of_rows(items, pair("Who?", "Me.", "You."), pair("q", "a", "b")).key for items in Items}
    assert len(keys) == len(Items)


def test_answers_in_batches(table_of_rows):
    """With mismatched rows a pack shares the prompt; without, it holds each row once, and padded rows are as many."""
    for items, rows in ((Items.MISMATCHED, 2), (Items.ANSWERS, 1)):
        table = table_of_rows(items, *LINES)
        pairs = [table[index] for index in range(3)]
        batch, padded = pack(pairs), pad(pairs)
        assert len(batch.token_ids) == table.packed_tokens.sum()
        assert (
            batch.row_tokens
            == padded.row_tokens
            == sum(len(one.chosen) + (rows - 1) * len(one.rejected) for one in pairs)
        )
        assert len(padded.token_ids) == 3 * rows
        assert batch.target_ids.tolist() == padded.target_ids.tolist()
        assert padded.target_counts.tolist() == batch.target_counts.tolist()
        assert (batch.target_counts[:, 2] > 0).all() if rows == 2 else not batch.target_counts[:, 2].any()
        # Each target is the token behind its position, in either layout.
        flat, row = padded.token_ids.flatten(), padded.token_ids.shape[1]
        for place, token in zip(padded.target_positions.tolist(), padded.target_ids.tolist(), strict=True):
            last = (place + 1) % row == 0 or not padded.attention_mask.flatten()[place + 1]
            assert last or flat[place + 1] == token
