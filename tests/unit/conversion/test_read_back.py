"""What was written is compared with what was exported."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from minimind.conversion.read_back import compare, logits_of_folder, logits_of_source, probe
from minimind.errors import WeightsError
from minimind.weights.sources import open_weights
from tests.unit.conversion.made import made


@pytest.fixture
def folder(tmp_path):
    made("qwen3_moe top 2, YaRN").save_pretrained(tmp_path)
    return tmp_path


def test_a_folder_computes_what_its_weights_do(folder):
    source = open_weights(folder, {})
    logits = logits_of_source(source, source.read)
    assert logits.shape == (1, 64, 6400)
    assert compare(logits, logits_of_folder(folder), folder) < 1e-5


def test_positions_reach_the_end_of_the_context(folder):
    """A model without YaRN computes something else, which would not show at small positions of a single sequence."""
    with_yarn, without = made("qwen3_moe top 2, YaRN"), made("qwen3_moe top 2, YaRN", inference_rope_scaling=False)
    with pytest.raises(WeightsError, match="computes something else"):
        compare(probe(with_yarn), probe(without), folder)


def test_a_changed_tensor_is_noticed(folder):
    logits = probe(made("qwen3_moe top 2, YaRN"))
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"][3] += 0.01
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(WeightsError, match="Nothing was kept"):
        compare(logits, logits_of_folder(folder), folder)


def test_a_missing_tensor_is_noticed(folder):
    """transformers fills it with random numbers and logs a line."""
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(WeightsError, match=r"missing_keys.*model\.norm\.weight"):
        logits_of_folder(folder)


def test_a_difference_that_is_no_number_is_one(tmp_path):
    with pytest.raises(WeightsError):
        compare(torch.zeros(2), torch.tensor([0.0, float("nan")]), tmp_path)


def test_a_folder_that_cannot_be_loaded_is_an_error(tmp_path):
    with pytest.raises(WeightsError, match="cannot be loaded"):
        logits_of_folder(tmp_path)
