"""Rows that stand alone, in tokens: what counts, what is cut, and the empty row beside them."""

from __future__ import annotations

import pytest

from minimind.data.alone import encode_alone
from minimind.data.encoder import build_encoder
from minimind.data.encoding import TEXT, EncodingOptions
from minimind.data.packs import Segment, pack
from minimind.data.pairs import LengthLimit
from minimind.data.rows import ConversationRow
from minimind.data.selection import select_pairs, summarize_lengths
from minimind.data.shapes import Items, ShapeOptions
from minimind.errors import DataError
from tests.conftest import conversation

CONVERSATIONS = ShapeOptions(items=Items.CONVERSATIONS)
TURNS = conversation("Hello", "Good morning!", "Where is Rome?", "In Italy.")


@pytest.fixture
def encoded(tokenizer):
    def run(messages, max_length=1000, **options):
        encoder = build_encoder(tokenizer, EncodingOptions(**options))
        return encode_alone(ConversationRow(messages=messages), 1, encoder, LengthLimit(max_length=max_length))

    return run


def counted(tokenizer, row):
    return tokenizer.decode([token for token, counts in zip(row.tokens, row.mask, strict=True) if counts])


def test_all_turns_of_the_assistant_count_or_the_last_one(encoded, tokenizer):
    end = f"{tokenizer.eos_token}\n"
    assert counted(tokenizer, encoded(TURNS).chosen) == f"Good morning!{end}In Italy.{end}"
    assert counted(tokenizer, encoded(TURNS, last_turn_only=True).chosen) == f"In Italy.{end}"
    assert encoded(TURNS).problem is None


def test_a_row_is_cut_at_its_end(encoded):
    whole = encoded(TURNS)
    cut = encoded(TURNS, max_length=whole.least_limit)
    assert (cut.lengths[0], len(cut.chosen.tokens), cut.end_cut, cut.is_lost) == (
        len(whole.chosen.tokens),
        whole.least_limit,
        True,
        False,
    )
    assert encoded(TURNS, max_length=whole.least_limit - 1).is_lost


def test_a_table_of_conversations(load, write_rows):
    rows = [{"conversations": TURNS}, {"messages": conversation("Hi", "Yo.")}, {"conversations": TURNS}]
    table = load(write_rows(*rows), shapes=CONVERSATIONS)
    assert (table.items, len(table), table.is_labelled, table[0].label) == ("conversations", 3, False, None)
    batch = pack([table[0], table[1]])
    first, second = len(table[0].chosen), len(table[1].chosen)
    # Nothing of the second rows is in the pack, and positions restart.
    assert batch.segments == (Segment(0, first - 1, 0), Segment(0, second - 1, 0))
    assert batch.position_ids.tolist() == [*range(first - 1), *range(second - 1)]
    assert batch.row_tokens == first + second
    assert len(batch.target_ids) == sum(int(table[index].chosen_mask.sum()) for index in (0, 1))
    assert table.identities.reshape(-1, 3)[0].tolist() == table.identities.reshape(-1, 3)[2].tolist()


def test_messages_about_lengths_speak_of_conversations(load, write_rows):
    table = load(
        write_rows({"conversations": TURNS}, {"conversations": TURNS[:2]}), shapes=CONVERSATIONS, max_length=16
    )
    assert "conversations whole" in summarize_lengths(table).advice
    with pytest.raises(DataError, match=r"conversations are longer than --max_seq_len 16:\n  line 1: \d+ tokens\n"):
        select_pairs(table, on_bad_row="error", on_long_row="error")


def test_rows_without_a_turn_to_learn_are_bad(load, write_rows):
    path = write_rows({"conversations": TURNS[:1]}, {"conversations": conversation("Hi", "Yo.")})
    (bad,) = load(path, shapes=CONVERSATIONS).bad
    assert (bad.line, bad.reason) == (1, "'conversations' has no assistant turn, so that there is nothing to learn")


TEXTS = {"shapes": ShapeOptions(items=Items.TEXTS), "options": EncodingOptions(mask=TEXT)}


def tokens_of(table):
    return [table[index].chosen.tolist() for index in range(len(table))]


def test_a_long_text_is_split_so_that_each_token_is_predicted_once(load, write_rows, tokenizer):
    path = write_rows({"text": "Once upon a time there was a horse that ate hay."}, {"text": "Short."})
    (whole, short) = tokens_of(load(path, **TEXTS, max_length=1000))
    assert (whole[0], whole[-1]) == (tokenizer.bos_token_id, tokenizer.eos_token_id)
    most = len(whole) // 2
    table = load(path, **TEXTS, max_length=most, long_text="split")
    *pieces, last = tokens_of(table)
    assert last == short
    assert all(2 <= len(piece) <= most for piece in pieces)
    assert [token for piece in pieces for token in piece[1:]] == whole[1:]
    assert (table.items, table.lines.tolist()) == ("texts", [1] * len(pieces) + [2])
    # Pieces of one text are not duplicates of each other.
    assert len({tuple(one) for one in table.identities.reshape(-1, 3).tolist()}) == len(table)
    batch = pack([table[0], table[1]])
    assert batch.position_ids.tolist() == [*range(len(pieces[0]) - 1), *range(len(pieces[1]) - 1)]
    assert len(batch.target_ids) == len(pieces[0]) + len(pieces[1]) - 2


def test_a_long_text_is_cut_or_closed_as_in_minimind(load, write_rows, tokenizer):
    path = write_rows({"text": "Once upon a time there was a horse that ate hay."})
    (whole,) = tokens_of(load(path, **TEXTS, max_length=1000))
    (cut,) = tokens_of(load(path, **TEXTS, max_length=8, long_text="cut"))
    (closed,) = tokens_of(load(path, **TEXTS, max_length=8, long_text="keep"))
    assert cut == whole[:8]
    assert closed == [*whole[:7], tokenizer.eos_token_id]


def test_an_empty_text_is_a_bad_row(load, write_rows):
    table = load(write_rows({"text": " \n"}, {"text": "Once"}), **TEXTS)
    assert [(row.line, row.reason) for row in table.bad] == [(1, "the text is empty")]
    assert len(select_pairs(table, on_bad_row="skip", on_long_row="split")) == 1
