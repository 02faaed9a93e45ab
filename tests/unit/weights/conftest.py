"""Tiny models to write, read and damage."""

from __future__ import annotations

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from minimind import MiniMindConfig, MiniMindForCausalLM
from minimind.weights.sources import HuggingFaceSource
from tests.unit.weights.adapted import dense, mixture, spec_of

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


@pytest.fixture(scope="module")
def small_gpt2(tmp_path_factory):
    """GPT-2, whose linear layers keep their weights as (in, out) and have a bias."""
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=64, n_positions=32, n_embd=32, n_layer=2, n_head=4)
    folder = tmp_path_factory.mktemp("gpt2")
    GPT2LMHeadModel(config).save_pretrained(folder)
    return HuggingFaceSource(folder, config)


ADAPTERS = [
    pytest.param(("dense", {}), id="dense"),
    pytest.param(("dense", {"targets": "square"}), id="square"),
    pytest.param(("dense", {"dora": True}), id="dora"),
    pytest.param(("dense", {"rslora": True, "alpha": 3.0}), id="rslora"),
    pytest.param(("mixture", {"targets": "experts"}), id="experts"),
    pytest.param(("gpt2", {}), id="gpt2"),
    pytest.param(("gpt2", {"dora": True}), id="gpt2-dora"),
]


@pytest.fixture(params=ADAPTERS)
def adapted(request, small_gpt2):
    """A source of weights, and adapters for them."""
    kind, fields = request.param
    base = {"dense": dense, "mixture": mixture, "gpt2": lambda: small_gpt2}[kind]()
    return base, spec_of(base, **fields)
