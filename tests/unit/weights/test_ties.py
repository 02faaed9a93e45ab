"""A file that has a tied tensor under both names has it twice with the same values, or is refused."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from minimind.errors import WeightsError
from minimind.weights.sources import open_weights
from minimind.weights.ties import same_content, tied_names
from tests.unit.weights.conftest import llama, minimind

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def with_head(folder, change):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    save_file({**tensors, HEAD: tensors[EMBEDDING] + change}, path, metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("model", [minimind("minimind3"), llama(tied=True)], ids=["minimind", "llama"])
def test_a_tied_head_in_the_file_must_be_the_embedding(model, tmp_path):
    model.save_pretrained(tmp_path)
    assert HEAD not in open_weights(with_head(tmp_path, 0), {}).shapes()
    with pytest.raises(WeightsError, match=r"ties lm_head.weight to model.embed_tokens.weight, but .*tie_word_emb"):
        open_weights(with_head(tmp_path, 1), {})


def test_names_of_tied_tensors():
    assert list(tied_names(llama(tied=True))) == [(EMBEDDING, HEAD)]
    assert list(tied_names(llama(tied=False))) == []


def test_content_is_compared_by_value():
    one = torch.arange(3)
    assert same_content(one, one.clone())
    assert not same_content(one, one + 1)
    assert not same_content(one, torch.arange(4))
