"""Tables of tokenised pairs: their content, what the length limit cuts, bad rows, and costs."""

from __future__ import annotations

import numpy as np
import pytest

from minimind import demo
from minimind.data.packs import pack
from minimind.data.selection import select_pairs
from minimind.data.tokens import DEVELOPER, END_CUT, LOST, PROMPT_CUT
from tests.conftest import pair
from tests.unit.data.tables import LONG_QUESTION, ROWS, SHORT, lines


def test_pairs_are_the_rendered_rows_of_the_file(load, write_rows, tokenizer):
    table = load(write_rows(*ROWS))
    assert len(table) == 3
    for index, row in enumerate(ROWS):
        one = table[index]
        assert tokenizer.decode(one.chosen) == tokenizer.apply_chat_template(row["chosen"], tokenize=False)
        assert tokenizer.decode(one.rejected) == tokenizer.apply_chat_template(row["rejected"], tokenize=False)
        assert len(one.chosen_mask) == len(one.chosen)
        assert len(one.rejected_mask) == len(one.rejected)
        assert (one.index, table.lines[one.index]) == (index, index + 1)
        assert one.chosen[: one.prefix].tolist() == one.rejected[: one.prefix].tolist()
        assert one.chosen[one.prefix] != one.rejected[one.prefix]


def test_shared_answer_is_masked_in_both_halves(load, write_rows, tokenizer):
    one = load(write_rows(*ROWS))[1]
    counted = one.chosen[: one.prefix][one.chosen_mask[: one.prefix] == 1]
    assert tokenizer.decode(counted).startswith("Good morning!<|im_end|>")
    assert one.chosen_mask[: one.prefix].tolist() == one.rejected_mask[: one.prefix].tolist()


def test_rows_that_cannot_be_used_are_bad_and_count_as_rows(load, write_rows):
    table = load(write_rows(ROWS[0], "{broken", "", ROWS[1], '{"chosen": [], "rejected": []}'))
    assert [(row.line, row.tokenized) for row in table.bad] == [(2, False), (5, False)]
    assert [row.reason[:12] for row in table.bad] == ["invalid JSON", "'chosen' is "]
    assert lines(table) == [1, 4]
    assert table.total_rows == 4


def test_a_pair_without_a_difference_is_bad_and_tokenised(load, write_rows):
    question, answer = ROWS[0]["chosen"]
    same = {"chosen": [question, {**answer, "score": 2}], "rejected": [question, {**answer, "score": 1}]}
    table = load(write_rows(SHORT, same))
    assert [(row.line, row.tokenized) for row in table.bad] == [(2, True)]
    assert lines(table) == [1, 2]
    assert table[1].chosen.tolist() == table[1].rejected.tolist()
    assert table.total_rows == 2


def test_long_rows_are_cut_and_keep_their_lengths(load, write_rows):
    path = write_rows(SHORT, LONG_QUESTION)
    whole, cut = load(path), load(path, max_length=12)
    assert len(whole.bad) == len(cut.bad) == 0
    assert cut.full_lengths.tolist() == whole.full_lengths.tolist() == np.diff(whole.offsets).tolist()
    assert np.diff(cut.offsets).tolist() == np.minimum(whole.full_lengths, 12).tolist()
    assert (whole.cuts.tolist(), cut.cuts.tolist()) == ([0, 0], [END_CUT, END_CUT | LOST])
    assert (whole.max_length, cut.max_length) == (64, 12)
    assert cut[1].chosen.tolist() == whole[1].chosen[:12].tolist()
    assert not cut[1].chosen_mask.any()


def test_cut_prompts_have_arrays_of_their_own(load, write_rows, tokenizer):
    path = write_rows(ROWS[1])
    limit = int(max(load(path).full_lengths)) - 1
    cut, prompt_cut = load(path, max_length=limit), load(path, max_length=limit, cut_prompt=True)
    assert cut.key != prompt_cut.key
    assert cut.full_lengths.tolist() == prompt_cut.full_lengths.tolist()
    assert prompt_cut.cuts.tolist() == [PROMPT_CUT]
    expected = tokenizer.apply_chat_template(ROWS[1]["chosen"][2:], tokenize=False)
    assert tokenizer.decode(prompt_cut[0].chosen) == expected


def test_columns_of_no_use_are_counted_over_all_rows(load, write_rows):
    rows = [{**row, "score": index or None, "id": index} for index, row in enumerate(ROWS)]
    assert load(write_rows(*rows, "{broken")).unused == {"column 'score'": 2, "column 'id'": 3}


def test_rows_of_each_shape_are_counted(load, write_rows):
    texts = {"prompt": "What do horses eat?", "chosen": "Hay.", "rejected": "Who cares."}
    table = load(write_rows(*ROWS, texts, {"prompt": "x"}, SHORT))
    assert (table.shapes, len(table.lines), table.total_rows) == ({"minimind": 4, "trl": 1}, 5, 6)


def test_developer_messages_are_counted(load, write_rows):
    developer = {"role": "developer", "content": "Be kind."}
    row = {half: [developer, *messages] for half, messages in SHORT.items()}
    assert load(write_rows(row, SHORT)).counts[DEVELOPER] == 1


def test_packed_tokens_are_the_lengths_of_the_packs(load, write_rows):
    table = load(write_rows(*ROWS, pair("Go on", "Yes", "Yes, I do"), "broken"), max_length=24)
    for policy in ("cut", "keep", "skip"):
        selected = select_pairs(table, on_bad_row="skip", on_long_row=policy)
        packs = [pack([selected[i]]) for i in range(len(selected))]
        assert selected.packed_tokens.tolist() == [len(one.token_ids) for one in packs]


def test_costs_add_the_squares_of_the_row_lengths(load, write_rows):
    """A row of 8192 tokens costs 8192 for its linear layers and as much for its attention."""
    table = load(write_rows(*ROWS))
    for index, cost in enumerate(table.costs):
        one = table[index]
        attention = (len(one.chosen) ** 2 + len(one.rejected) ** 2) / 8192
        assert cost == pytest.approx(len(pack([one]).token_ids) + attention)


def test_demo_data_has_no_bad_row(load):
    for path in (demo.TRAIN_PATH, demo.EVAL_PATH):
        table = load(path, max_length=1024)
        assert not len(table.bad)
        assert len(table) == len(path.read_text(encoding="utf-8").splitlines())
