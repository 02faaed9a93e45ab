"""The parts of a block: normalisation, rotary embedding and YaRN, with expected values by hand."""

from __future__ import annotations

import math

import pytest
import torch

from minimind import MiniMindConfig
from minimind.model.layers import (
    FeedForward,
    HeadNormRotary,
    Linear,
    RMSNorm,
    can_fuse,
    rotary_frequencies,
    rotary_tables,
)
from minimind.native import ops, torch_ops

CPU = torch.device("cpu")


def config(head_dim: int, **fields) -> MiniMindConfig:
    return MiniMindConfig(
        hidden_size=2 * head_dim,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=head_dim,
        rope_theta=1e4,
        **fields,
    )


def test_rms_norm_by_hand():
    # mean square of (3, 4) is 12.5
    norm = RMSNorm(2, eps=0.0)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, 10.0]))
    expected = torch.tensor([3 / math.sqrt(12.5), 40 / math.sqrt(12.5)])
    torch.testing.assert_close(norm(torch.tensor([3.0, 4.0])), expected)


def test_rms_norm_adds_eps_inside_the_root():
    # mean square 1, eps 3: 1 / sqrt(4)
    torch.testing.assert_close(RMSNorm(2, eps=3.0)(torch.ones(2)), torch.tensor([0.5, 0.5]))


def test_rms_norm_of_bf16_is_computed_in_float32(either_kernels):
    """The mean square of 255 ones and one 16 is (255 + 256) / 256, which bf16 cannot represent."""
    x = torch.cat((torch.tensor([16.0]), torch.ones(255))).bfloat16()
    norm = RMSNorm(256, eps=0.0).bfloat16()
    exact = 1 / math.sqrt((256 + 255) / 256)
    assert norm(x)[1].item() == torch.tensor(exact).bfloat16().item()


@pytest.mark.parametrize("tokens", [5, 90])
def test_bf16_heads_equal_rounded_float32_heads(tokens, either_kernels):
    """A kernel computes a batch of one sequence; torch computes a batch of two."""
    norm, cos_sin = HeadNormRotary(8, eps=1e-5), rotary_tables(config(8), torch.arange(tokens)[None])
    torch.nn.init.normal_(norm.weight)
    norm.bfloat16()
    x = torch.randn(1, tokens, 3, 8).bfloat16()
    exact = torch_ops.rotate(torch.nn.functional.rms_norm(x.float(), (8,), norm.weight.float(), 1e-5), *cos_sin)
    torch.testing.assert_close(norm(x, cos_sin).float(), exact, rtol=2**-7, atol=1e-2)
    two = norm(x.expand(2, -1, -1, -1), tuple(table.expand(2, -1, -1) for table in cos_sin))
    torch.testing.assert_close(two[:1].float(), exact, rtol=2**-7, atol=2e-2)


class Added(Linear):
    """A layer that an adapter has put in place of the original."""


def test_layers_are_fused_unless_replaced_or_hooked(cpu_kernels):
    first, second, x = Linear(4, 6).bfloat16(), Linear(4, 8).bfloat16(), torch.randn(3, 4).bfloat16()
    assert can_fuse(x, first, second)
    assert not can_fuse(x.float(), first, second)
    assert not can_fuse(x, first, Linear(4, 8))
    assert not can_fuse(x, first, Added(4, 8).bfloat16())
    assert not can_fuse(x, first, torch.nn.Linear(4, 8, bias=False).bfloat16())
    for register in ("forward_pre", "forward", "full_backward_pre", "full_backward"):
        handle = getattr(second, f"register_{register}_hook")(lambda *_: None)
        assert not can_fuse(x, first, second), register
        handle.remove()
    assert can_fuse(x, first, second)
    handle = torch.nn.modules.module.register_module_forward_hook(lambda *_: None)
    assert not can_fuse(x, first, second)
    handle.remove()
    second.forward = lambda x: x
    assert not can_fuse(x, first, second)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_feed_forward_is_the_same_with_and_without_hooks(dropout, either_kernels):
    """Fused layers differ from single calls by rounding. With dropout 0.5 half of the outputs equal the residual."""
    settings = MiniMindConfig(
        hidden_size=32, num_attention_heads=2, num_key_value_heads=2, generation=2, dropout=dropout
    )
    network = FeedForward(settings, 48).bfloat16()
    x, residual = torch.randn(2, 40, 32).bfloat16(), torch.randn(2, 40, 32).bfloat16()
    torch.manual_seed(0)
    at_once = network(x, residual)
    calls = []
    for layer in (network.gate_proj, network.up_proj, network.down_proj):
        layer.register_forward_hook(lambda *_: calls.append(1))
    torch.manual_seed(0)
    torch.testing.assert_close(network(x, residual), at_once, rtol=2**-6, atol=2e-2)
    assert len(calls) == 3
    kept = (at_once == residual).float().mean()
    assert (0.4 < kept < 0.6) if dropout else kept < 0.2


def test_frequencies_without_yarn():
    # 10000 ** (-2i / 8)
    torch.testing.assert_close(rotary_frequencies(config(8), CPU), torch.tensor([1.0, 0.1, 0.01, 0.001]))


def test_yarn_by_hand():
    """Original context 2048, factor 16, base 10^4, D = 8, so 4 channel pairs.

    Pair c turns 2048 / (2 pi 10^c) times within the context. The pair that turns n times is c(n) = 8 ln(2048
    / (2 pi n)) / (2 ln 10^4): c(32) = 8 * 2.3210 / 18.4207 = 1.008, floor 1; c(1) = 8 * 5.7867 / 18.4207 =
    2.513, ceiling 3. So pairs 0 and 1 stay, pair 3 is slowed down by 16, and pair 2, half way, has the mean
    of both: 0.5 + 0.5 / 16 = 0.53125.
    """
    frequencies = rotary_frequencies(config(8, inference_rope_scaling=True), CPU)
    torch.testing.assert_close(frequencies, torch.tensor([1.0, 0.1, 0.01 * 0.53125, 0.001 / 16]))


def test_yarn_with_a_factor_from_the_configuration():
    """D = 4: c(32) = 0.504, floor 0; c(1) = 1.257, ceiling 2, limited to the last pair, 1. Pair 0 stays; the frequency
    of pair 1 is divided by the factor."""
    scaled = config(4, inference_rope_scaling=True, rope_scaling={"factor": 4.0})
    torch.testing.assert_close(rotary_frequencies(scaled, CPU), torch.tensor([1.0, 0.01 / 4]))


def test_yarn_applies_only_to_contexts_longer_than_the_original():
    short = config(8, inference_rope_scaling=True, max_position_embeddings=2048)
    assert torch.equal(rotary_frequencies(short, CPU), rotary_frequencies(config(8), CPU))


def test_attention_factor_scales_the_tables():
    plain = rotary_tables(config(8), torch.tensor([[0, 3]]))
    fields = {"inference_rope_scaling": True, "max_position_embeddings": 2048}
    scaled = rotary_tables(config(8, **fields, rope_scaling={"attention_factor": 2.0}), torch.tensor([[0, 3]]))
    for one, other in zip(plain, scaled, strict=True):
        torch.testing.assert_close(other, 2 * one)


def test_tables_by_hand():
    cos, sin = rotary_tables(config(4), torch.tensor([[0, 2]]))
    # D = 4: frequencies 1 and 0.01
    angles = torch.tensor([[[0.0, 0.0], [2.0, 0.02]]])
    torch.testing.assert_close(cos, angles.cos())
    torch.testing.assert_close(sin, angles.sin())


def test_tables_are_float32():
    """In bf16 positions 1000 and 1001 would be the same number."""
    cos, _ = rotary_tables(config(4), torch.tensor([[1000, 1001]]))
    assert cos.dtype == torch.float32
    assert cos[0, 0, 0] != cos[0, 1, 0]


def test_rotate_pairs_channels_as_llama_and_moves_heads_first():
    """Channels 0 and 2 of 4 are a pair: (1, 0) rotated by 90 degrees is (0, 1). The second token has angle 0."""
    angles = torch.tensor([[[math.pi / 2, 0.0], [0.0, 0.0]]])
    x = torch.tensor([[1.0, 5.0, 0.0, 7.0], [2.0, 3.0, 4.0, 5.0]])[None, :, None].repeat(1, 1, 3, 1)
    turned = ops.rotate(x, angles.cos(), angles.sin())
    assert turned.shape == (1, 3, 2, 4)
    for head in turned[0]:
        torch.testing.assert_close(head, torch.tensor([[0.0, 5.0, 1.0, 7.0], [2.0, 3.0, 4.0, 5.0]]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rotate_keeps_the_dtype(dtype, either_kernels):
    cos, sin = rotary_tables(config(4), torch.tensor([[1]]))
    assert ops.rotate(torch.ones(1, 1, 1, 4, dtype=dtype), cos, sin).dtype == dtype
