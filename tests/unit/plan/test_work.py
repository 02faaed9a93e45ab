"""Useful operations, by hand; tests/benchmarks/test_work.py compares them with torch's count."""

from __future__ import annotations

import pytest
from transformers import LlamaConfig, MambaConfig

from minimind.data.packs import pack, pad
from minimind.errors import WeightsError
from minimind.model.configuration import MiniMindConfig
from minimind.plan.work import ModelWork
from minimind.weights.construction import empty_model, tensor_shapes
from tests.distributed.workers.engines import random_pair

SIZES = {"hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 640}


def work(config):
    return ModelWork.of(config, tensor_shapes(empty_model(config)))


def test_operations_of_a_llama():
    config = LlamaConfig(**SIZES, intermediate_size=96, num_attention_heads=4, num_key_value_heads=2)
    found = work(config)
    to_attention, after = 64 * 64 + 2 * 64 * 32, 64 * 64 + 3 * 64 * 96
    assert found == ModelWork(layers=2, to_attention=to_attention, after=after, head=64 * 640, scores=2 * 64)
    one = pack([random_pair(0, 30)])
    ((prefix, chosen, rejected),) = one.segments
    # By the definition: token by token, the number of tokens that it sees.
    seen = sum(at + 1 for at in range(prefix + chosen)) + sum(prefix + at + 1 for at in range(rejected))
    tokens, targets = prefix + chosen + rejected, len(one.target_ids)
    expected = 2 * (2 * to_attention * tokens + after * (tokens + targets) + 2 * 128 * seen + 64 * 640 * targets)
    assert found.forward_flops(one) == expected


def test_padding_does_not_count():
    found = work(MiniMindConfig(generation=3, **SIZES))
    pairs = [random_pair(0, 20), random_pair(1, 60)]
    alone = [found.forward_flops(pad([pair])) for pair in pairs]
    assert found.forward_flops(pad(pairs)) == sum(alone)
    # A prefix that two rows share is computed once in a pack.
    assert found.forward_flops(pack(pairs)) <= sum(alone)
    assert found.forward_flops(pack(pairs, share_prefix=False)) == sum(alone)


def test_only_the_experts_that_a_token_is_routed_to_count():
    def of(experts, routed):
        sizes = {"num_experts": experts, "num_experts_per_tok": routed, "moe_intermediate_size": 32}
        return work(MiniMindConfig(generation=3, use_moe=True, **SIZES, **sizes)).after

    expert, router = 3 * 64 * 32, 64
    assert of(8, 2) - of(8, 1) == expert
    assert of(8, 1) - of(4, 1) == 4 * router


def test_a_model_without_heads_is_not_counted():
    config = MambaConfig(hidden_size=32, num_hidden_layers=1, vocab_size=64)
    with pytest.raises(WeightsError, match="num_attention_heads"):
        ModelWork.of(config, {})
