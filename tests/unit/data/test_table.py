"""Tables of tokenised pairs: their content, the policies for bad rows, and costs."""

from __future__ import annotations

import pytest

from minimind import demo
from minimind.data.packs import pack
from minimind.errors import DataError
from tests.conftest import pair
from tests.unit.data.tables import LONG_QUESTION, ROWS, SHORT, content, lines


def test_pairs_are_the_rendered_rows_of_the_file(load, write_rows, tokenizer):
    table = load(write_rows(*ROWS))
    assert len(table) == 3
    for index, row in enumerate(ROWS):
        one = table[index]
        assert tokenizer.decode(one.chosen) == tokenizer.apply_chat_template(row["chosen"], tokenize=False)
        assert tokenizer.decode(one.rejected) == tokenizer.apply_chat_template(row["rejected"], tokenize=False)
        assert len(one.chosen_mask) == len(one.chosen)
        assert len(one.rejected_mask) == len(one.rejected)
        assert one.line == index + 1
        assert one.chosen[: one.prefix].tolist() == one.rejected[: one.prefix].tolist()
        assert one.chosen[one.prefix] != one.rejected[one.prefix]


def test_shared_answer_is_masked_in_both_halves(load, write_rows, tokenizer):
    one = load(write_rows(*ROWS))[1]
    counted = one.chosen[: one.prefix][one.chosen_mask[: one.prefix] == 1]
    assert tokenizer.decode(counted).startswith("Good morning!<|im_end|>")
    assert one.chosen_mask[: one.prefix].tolist() == one.rejected_mask[: one.prefix].tolist()


def test_bad_rows_are_listed_with_line_and_reason(load, write_rows):
    table = load(write_rows(ROWS[0], "{broken", "", ROWS[1], '{"chosen": [], "rejected": []}'))
    with pytest.raises(DataError) as caught:
        table.handle_bad_rows("error")
    message = str(caught.value)
    assert "pairs.jsonl: 2 of 4 rows cannot be trained on" in message
    assert "line 2: invalid JSON" in message
    assert "line 5: 'chosen' is not a list of messages" in message
    assert "Correct the rows, increase --max_seq_len, or omit the rows with --on_bad_row skip." in message


def test_ten_of_many_bad_rows_are_shown(load, write_rows):
    table = load(write_rows(ROWS[0], *["{"] * 13))
    with pytest.raises(DataError) as caught:
        table.handle_bad_rows("error")
    message = str(caught.value)
    assert "13 of 14 rows" in message
    assert message.count("invalid JSON") == 10
    assert "... and 3 more" in message


def test_policy_error_keeps_a_table_without_bad_rows(load, write_rows):
    table = load(write_rows(*ROWS))
    assert table.bad == ()
    assert content(table.handle_bad_rows("error")) == content(table)


def test_policy_error_rejects_truncated_rows(load, write_rows):
    table = load(write_rows(SHORT, LONG_QUESTION), max_length=12)
    with pytest.raises(DataError, match=r"1 of 2 rows .*\n  line 2: truncation to 12 tokens"):
        table.handle_bad_rows("error")


def test_policy_skip_omits_invalid_and_truncated_rows(load, write_rows):
    table = load(write_rows("{broken", LONG_QUESTION, SHORT), max_length=12).handle_bad_rows("skip")
    assert lines(table) == [3]
    assert table.total_rows == 3


def test_policy_keep_omits_invalid_rows_only(load, write_rows):
    table = load(write_rows("{broken", LONG_QUESTION, SHORT), max_length=12).handle_bad_rows("keep")
    assert lines(table) == [2, 3]
    assert len(table[0].chosen) == 12
    assert not table[0].chosen_mask.any()
    assert table[1].chosen_mask.any()


@pytest.mark.parametrize("policy", ["skip", "keep"])
def test_table_without_a_usable_row_is_an_error(load, write_rows, policy):
    table = load(write_rows("{broken", "[]"))
    with pytest.raises(DataError, match="none of the 2 rows can be trained on"):
        table.handle_bad_rows(policy)


def test_packed_tokens_are_the_lengths_of_the_packs(load, write_rows):
    table = load(write_rows(*ROWS, pair("Go on", "Yes", "Yes, I do"), "broken"), max_length=24)
    for policy in ("skip", "keep"):
        selected = table.handle_bad_rows(policy)
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
        assert table.bad == ()
        assert len(table) == len(path.read_text(encoding="utf-8").splitlines())
