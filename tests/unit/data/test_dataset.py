"""MiniMind's data set class: six padded tensors per pair, and errors with the line."""

from __future__ import annotations

import copy

import pytest

from minimind import DPODataset
from minimind.errors import DataError
from tests.conftest import pair

ROW = pair("Hi", "Yo.", "No, go away.")


def test_tensors_are_shifted_padded_and_masked(write_rows, tokenizer):
    sample = DPODataset(write_rows(ROW), tokenizer, max_length=32)[0]
    text = tokenizer.apply_chat_template(ROW["chosen"], tokenize=False)
    tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
    padded = tokens + [tokenizer.pad_token_id] * (32 - len(tokens))
    assert sample["x_chosen"].tolist() == padded[:-1]
    assert sample["y_chosen"].tolist() == padded[1:]
    counted = sample["y_chosen"][sample["mask_chosen"] == 1].tolist()
    assert tokenizer.decode(counted) == "Yo.<|im_end|>\n"
    assert {tuple(tensor.shape) for tensor in sample.values()} == {(31,)}


def test_longer_rows_are_truncated(write_rows, tokenizer):
    long = DPODataset(write_rows(ROW), tokenizer, max_length=32)[0]
    short = DPODataset(write_rows(ROW), tokenizer, max_length=8)[0]
    for name, tensor in short.items():
        assert tensor.tolist() == long[name][:7].tolist()


def test_invalid_row_is_named_by_file_and_line(write_rows, tokenizer):
    with pytest.raises(DataError, match=r"pairs\.jsonl, line 3: invalid JSON"):
        DPODataset(write_rows(ROW, "", "{"), tokenizer)


def test_missing_file_is_named(tmp_path, tokenizer):
    with pytest.raises(DataError, match=r"nothing\.jsonl: no such preference file"):
        DPODataset(tmp_path / "nothing.jsonl", tokenizer)


def test_row_that_the_template_rejects_is_named_by_file_and_line(write_rows, tokenizer):
    """Rows are rendered when they are read, so the error comes then and not from the constructor."""
    strict = copy.deepcopy(tokenizer)
    strict.chat_template = "{% if messages[0].content == 'Hi' %}{{ raise_exception('no Hi') }}{% endif %}" + (
        tokenizer.chat_template
    )
    data = DPODataset(write_rows(pair("Hello", "Yo.", "No."), ROW), strict, max_length=32)
    assert len(data) == 2
    assert data[0]["x_chosen"].shape == (31,)
    with pytest.raises(DataError, match=r"pairs\.jsonl, line 2: the chat template rejects the row: no Hi"):
        data[1]
