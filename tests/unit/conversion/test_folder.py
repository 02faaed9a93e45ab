"""The files of a Hugging Face folder."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import GenerationConfig

from minimind.conversion.architectures import plain_config
from minimind.conversion.folder import with_special_tokens, write_config, write_tensors
from minimind.conversion.tensors import stored_tensors
from minimind.weights.files import open_folder
from minimind.weights.names import minimind_state
from minimind.weights.sources import open_weights
from tests.unit.conversion.made import made, own_state


def test_a_configuration_is_read_alike_by_programs_that_know_the_old_names(tmp_path):
    """Without rope_theta they would take 10000, without num_experts 128, and compute something else."""
    config = plain_config(made("qwen3_moe top 2, YaRN").config, "qwen3")
    write_config(config, "Qwen3MoeForCausalLM", torch.bfloat16, tmp_path, auto_map=False)
    values = json.loads((tmp_path / "config.json").read_text())
    assert values["rope_theta"] == values["rope_parameters"]["rope_theta"] == 1e6
    assert values["rope_scaling"]["rope_type"] == "yarn"
    assert values["rope_scaling"]["factor"] == 16
    assert "rope_theta" not in values["rope_scaling"]
    assert values["num_experts"] == values["num_local_experts"] == 4
    assert values["dtype"] == "bfloat16"
    assert values["architectures"] == ["Qwen3MoeForCausalLM"]
    assert "auto_map" not in values
    assert not (tmp_path / "modeling_minimind.py").exists()
    again = type(config).from_pretrained(tmp_path)
    assert again.rope_parameters == config.rope_parameters
    assert again.num_experts == 4


def test_ends_of_answers_are_the_tokenizer_s(tokenizer, tmp_path):
    config = made(eos_token_id=5).config
    with_special_tokens(config, tokenizer)
    write_config(config, "MiniMindForCausalLM", torch.float32, tmp_path, auto_map=False)
    generation = GenerationConfig.from_pretrained(tmp_path)
    assert generation.eos_token_id == tokenizer.eos_token_id == 2
    assert generation.pad_token_id == tokenizer.pad_token_id


@pytest.mark.parametrize("kind", ["llama", "qwen3_moe"])
@pytest.mark.parametrize("size", ["5GB", "20KB"])
def test_tensors_are_those_of_minimind_s_files(kind, size, tmp_path):
    model = made(kind)
    model.save_pretrained(tmp_path / "start")
    source = open_weights(tmp_path / "start", {})
    (tmp_path / "out").mkdir()
    write_tensors(tmp_path / "out", stored_tensors(source, stacked=False), torch.float32, source.read, size)
    written, expected = open_folder(tmp_path / "out"), minimind_state(own_state(model))
    assert set(written) == set(expected)
    assert all(torch.equal(written[name], tensor) for name, tensor in expected.items())
    assert (len(list((tmp_path / "out").glob("*.safetensors"))) > 1) == (size == "20KB")
