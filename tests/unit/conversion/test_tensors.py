"""Tensors under MiniMind's names, from any architecture that it equals, and the names that files have."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from minimind.conversion.architectures import plain_config
from minimind.conversion.tensors import as_minimind, stored_tensors
from minimind.errors import WeightsError
from minimind.weights.names import minimind_state
from minimind.weights.sources import open_weights
from tests.unit.conversion.made import KINDS, form_of, made, own_state
from tests.unit.weights.test_sources import own_state as state_of


@pytest.mark.parametrize("kind", ["llama", "qwen3", "qwen3_moe top 2, YaRN"])
def test_tensors_of_another_architecture_have_minimind_s_names(kind, tmp_path):
    plain = AutoModelForCausalLM.from_config(plain_config(made(kind).config, form_of(kind)))
    plain.save_pretrained(tmp_path)
    found = as_minimind(open_weights(tmp_path, {}))
    assert found.config.model_type == "minimind"
    state = state_of(plain)
    for name in found.shapes():
        tensor = found.read(name)
        if name.endswith("experts.gate_proj"):
            tensor = torch.cat([tensor, found.read(name.replace("gate_proj", "up_proj"))], dim=1)
            name = name.replace("gate_proj", "gate_up_proj")
        if not name.endswith("experts.up_proj"):
            assert torch.equal(tensor, state.pop(name)), name
    assert state == {}


@pytest.mark.parametrize("kind", KINDS)
def test_files_have_the_names_of_minimind_s_own(kind, tmp_path):
    model = made(kind)
    model.save_pretrained(tmp_path)
    source = open_weights(tmp_path, {})
    stored = stored_tensors(source, stacked=False)
    expected = minimind_state(own_state(model))
    assert {name: one.shape for name, one in stored.items()} == {n: tuple(t.shape) for n, t in expected.items()}
    for name, one in stored.items():
        tensor = source.read(one.source)
        assert torch.equal(tensor if one.expert is None else tensor[one.expert], expected[name])
    assert set(stored_tensors(source, stacked=True)) == set(own_state(model))


def test_yarn_can_be_turned_on(tmp_path):
    made("qwen3").save_pretrained(tmp_path)
    source = open_weights(tmp_path, {})
    found = as_minimind(source, yarn=True)
    assert found.config.yarn["factor"] == 16
    assert found.config.head_dim == 12
    assert source.config.yarn is None


def test_tensors_that_do_not_fit_are_named(tmp_path):
    made("qwen3").save_pretrained(tmp_path)
    source = open_weights(tmp_path, {})
    source.config.num_hidden_layers = 3
    with pytest.raises(WeightsError, match=r"missing: model\.layers\.2"):
        as_minimind(source)
