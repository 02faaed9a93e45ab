"""Dropout is found and turned off, whatever a family calls it and wherever it keeps it."""

from __future__ import annotations

import pytest
import torch
from transformers import GPT2Config, LlamaConfig, OPTConfig

from minimind.model.configuration import MiniMindConfig
from minimind.model.dropout import dropout_fields, turn_off_dropout
from tests.parity.families import tiny_config, tiny_model

# Families that keep dropout in modules, in attributes of modules, and in configurations that they read in each forward.
FAMILIES = ("gpt2", "opt", "bart", "xglm", "seed_oss", "biogpt", "gpt_bigcode", "emu3", "openai-gpt")


def forward(model, seed: int) -> torch.Tensor:
    torch.manual_seed(seed)
    return model(input_ids=torch.arange(3, 40)[None]).logits


@pytest.mark.parametrize("model_type", FAMILIES)
@torch.no_grad()
def test_training_is_deterministic_and_equal_to_evaluation(model_type):
    model = tiny_model(tiny_config(model_type)).train()
    assert not torch.equal(forward(model, 1), forward(model, 2))  # the family has dropout
    found = turn_off_dropout(model)
    assert found
    assert torch.equal(forward(model, 1), forward(model, 2))
    torch.testing.assert_close(forward(model, 1), forward(model.eval(), 1), rtol=0, atol=1e-6)
    assert turn_off_dropout(model) == {}


@torch.no_grad()
def test_noise_on_a_routers_inputs_is_dropout():
    config = tiny_config("mixtral")
    config.router_jitter_noise = 0.5
    model = tiny_model(config).train()
    assert not torch.equal(forward(model, 1), forward(model, 2))
    assert turn_off_dropout(model) == {"jitter_noise": 0.5}
    assert torch.equal(forward(model, 1), forward(model, 2))


def test_a_threshold_with_the_name_of_a_noise_stays():
    model = tiny_model(tiny_config("phimoe"))
    assert turn_off_dropout(model) == {}
    assert model.config.router_jitter_noise == 0.01


def test_what_was_turned_off_is_named_with_its_largest_value():
    model = tiny_model(GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=9, attn_pdrop=0.25, resid_pdrop=0.5))
    assert turn_off_dropout(model) == {"Dropout": 0.5, "attn_pdrop": 0.25, "resid_pdrop": 0.5, "embd_pdrop": 0.1}


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (LlamaConfig(), {}),
        (LlamaConfig(attention_dropout=0.5), {"attention_dropout": 0.5}),
        (OPTConfig(dropout=0.25, layerdrop=0.125), {"dropout": 0.25, "layerdrop": 0.125}),
        (MiniMindConfig(dropout=0.1), {"dropout": 0.1}),
        (tiny_config("emu3"), {"attention_dropout": 0.1}),  # in the text half of the configuration
    ],
)
def test_fields_of_a_configuration(config, expected):
    assert dropout_fields(config) == expected


def test_dropout_of_heads_for_other_tasks_is_not_reported():
    assert dropout_fields(GPT2Config(attn_pdrop=0.0, resid_pdrop=0.0, embd_pdrop=0.0)) == {}
