"""`minimind.DPODataset` gives MiniMind's own six tensors, token for token, with both public tokenizers."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from minimind import DPODataset

ROWS, MAX_LENGTH = 12, 512
FIELDS = ("x_chosen", "y_chosen", "mask_chosen", "x_rejected", "y_rejected", "mask_rejected")


@pytest.fixture(scope="module", params=["minimind2", "minimind3"])
def dataset_and_golden(shared, request):
    tokenizer = AutoTokenizer.from_pretrained(shared / "tokenizers" / request.param)
    dataset = DPODataset(shared / "data" / "dpo_zh.jsonl", tokenizer, max_length=MAX_LENGTH)
    return dataset, load_file(shared / "golden" / f"dataset_{request.param}_zh_0_12.safetensors")


def test_data_set_has_every_row_of_the_file(dataset_and_golden):
    assert len(dataset_and_golden[0]) == 300


@pytest.mark.parametrize("index", range(ROWS))
def test_row_is_the_same(dataset_and_golden, index):
    dataset, golden = dataset_and_golden
    row = dataset[index]
    assert set(row) == set(FIELDS)
    for field in FIELDS:
        assert row[field].dtype == torch.int64
        assert torch.equal(row[field], golden[field][index].long()), field


def test_golden_rows_include_a_truncated_and_a_padded_one(dataset_and_golden):
    """Without both, the test above would not see how rows are cut and filled."""
    dataset, golden = dataset_and_golden
    padded = (golden["y_chosen"] == dataset.pad_id).any(1)
    assert padded.any()
    assert not padded.all()
