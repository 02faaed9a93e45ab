"""Tiny models to write, read and damage."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from minimind import MiniMindConfig, MiniMindForCausalLM

KINDS = {
    "minimind2": {"generation": 2},
    "minimind3": {"generation": 3},
    "minimind2_moe": {"generation": 2, "use_moe": True},
    "minimind3_moe": {"generation": 3, "use_moe": True},
}


def minimind(kind: str, seed: int = 0, **fields) -> MiniMindForCausalLM:
    torch.manual_seed(seed)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 61}
    return MiniMindForCausalLM(MiniMindConfig(**{**sizes, **KINDS[kind], **fields})).eval()


def llama(tied: bool, seed: int = 0) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=61,
        tie_word_embeddings=tied,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture(params=KINDS)
def kind(request) -> str:
    return request.param
