"""The CPU's bfloat16 attention against the definition in float32: as near as torch's own kernel is."""

from __future__ import annotations

import pytest
import torch

from minimind.model.cpu_attention import _BLOCK, _blocks, cpu_packed_attention
from minimind.model.packed_attention import PackLayout, packed_attention

# Longer than one block, shorter, without a prefix, without a rejected or a chosen rest, one token.
SEGMENTS = ((40, 300, 150), (0, 17, 9), (130, 5, 0), (20, 0, 260), (1, 1, 1))
TOTAL = sum(map(sum, SEGMENTS))


def inputs(heads: int, kv_heads: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(3)
    shapes = ((heads, TOTAL, 16), (kv_heads, TOTAL, 16), (kv_heads, TOTAL, 16), (heads, TOTAL, 16))
    return tuple(torch.randn(shape, generator=generator).to(torch.bfloat16) for shape in shapes)


def differentiated(attend, tensors, grad) -> list[torch.Tensor]:
    """Output and the gradients of query, key and value."""
    leaves = [tensor.detach().clone().requires_grad_() for tensor in tensors]
    out = attend(*leaves)
    out.backward(grad)
    return [out.detach(), *(leaf.grad for leaf in leaves)]


def by_sdpa(query, key, value):
    """The float32 route of the same function, through torch's own kernel."""
    out, _ = packed_attention(
        torch.nn.Module(), query[None], key[None], value[None], None, pack=PackLayout(SEGMENTS), scaling=0.25
    )
    return out[0].transpose(0, 1)


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (6, 1)])
def test_outputs_and_gradients_are_those_of_float32_attention(heads, kv_heads):
    *tensors, grad = inputs(heads, kv_heads)
    exact = differentiated(by_sdpa, [tensor.float() for tensor in tensors], grad.float())
    mine = differentiated(lambda *qkv: cpu_packed_attention(*qkv, SEGMENTS, 0.25), tensors, grad)
    for name, value, expected in zip(("out", "query", "key", "value"), mine, exact, strict=True):
        assert value.dtype == torch.bfloat16
        # bfloat16 has 8 bits: a rounding is off by up to 2^-9 = 0.002; scores, probabilities and results are rounded.
        error = (value.float() - expected).norm() / expected.norm()
        assert error < 0.008, f"{name} is off by {error:.4f}"


def test_packs_in_bfloat16_on_a_cpu_take_this_route_and_no_other():
    *tensors, _ = inputs(4, 2)
    direct = cpu_packed_attention(*tensors, SEGMENTS, 16**-0.5)
    query, key, value = (tensor[None] for tensor in tensors)
    routed, _ = packed_attention(torch.nn.Module(), query, key, value, None, pack=PackLayout(SEGMENTS))
    assert torch.equal(routed[0].transpose(0, 1), direct)


def test_blocks_cover_every_query_once_and_see_what_they_may():
    covered = []
    for (first, last), seen in _blocks(SEGMENTS):
        assert 0 < last - first <= _BLOCK
        assert seen[-1][1] == last
        covered += range(first, last)
    assert sorted(covered) == list(range(TOTAL))
