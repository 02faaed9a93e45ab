"""The CPU's bfloat16 attention over packs against the definition in float32."""

from __future__ import annotations

import pytest
import torch

from minimind.model.packed_attention import PackLayout, packed_attention
from minimind.native import functions

pytestmark = pytest.mark.usefixtures("cpu_kernels")

# More queries than a block has, fewer, some more than a whole number of blocks; more keys than a block has, and odd
# numbers of them; without a prefix, without a rejected or a chosen rest, one token.
SEGMENTS = ((41, 300, 151), (0, 17, 9), (130, 5, 0), (20, 0, 260), (64, 65, 1), (1, 1, 1))
TOTAL = sum(map(sum, SEGMENTS))


def inputs(heads: int, kv_heads: int, size: int) -> tuple[torch.Tensor, ...]:
    """Query, key, value and the output's gradient, heads first; as in a model the values lie token by token."""
    generator = torch.Generator().manual_seed(3)
    shapes = ((heads, TOTAL, size), (kv_heads, TOTAL, size), (TOTAL, kv_heads, size), (heads, TOTAL, size))
    query, key, value, grad = (torch.randn(shape, generator=generator).to(torch.bfloat16) for shape in shapes)
    return query, key, value.transpose(0, 1), grad


def differentiated(attend, tensors, grad) -> list[torch.Tensor]:
    """Output and the gradients of query, key and value."""
    leaves = [tensor.detach().requires_grad_() for tensor in tensors]
    out = attend(*leaves)
    out.backward(grad)
    return [out.detach(), *(leaf.grad for leaf in leaves)]


# No power of two: products with it are rounded.
SCALING = 0.3


def by_sdpa(query, key, value):
    """The float32 route of the same function, through torch's own kernel."""
    out, _ = packed_attention(
        torch.nn.Module(), query[None], key[None], value[None], None, pack=PackLayout(SEGMENTS), scaling=SCALING
    )
    return out[0].transpose(0, 1)


def by_kernel(query, key, value):
    return attend(query, key, value, SCALING).transpose(0, 1)


def attend(query, key, value, scaling):
    """The kernel's attention without the batch dimension: (heads, T, D) -> (T, heads, D)."""
    return functions.packed_attention(query[None], key[None], value[None], SEGMENTS, scaling)[0]


# Head sizes that fill vectors, that do not, and one that no vector length divides.
@pytest.mark.parametrize(("heads", "kv_heads", "size"), [(4, 4, 16), (4, 2, 64), (6, 1, 96), (2, 2, 10), (2, 1, 2)])
def test_outputs_and_gradients_are_those_of_float32_attention(heads, kv_heads, size):
    *tensors, grad = inputs(heads, kv_heads, size)
    exact = differentiated(by_sdpa, [tensor.float() for tensor in tensors], grad.float())
    mine = differentiated(by_kernel, tensors, grad)
    for name, value, expected in zip(("out", "query", "key", "value"), mine, exact, strict=True):
        assert value.dtype == torch.bfloat16
        # bfloat16 has 8 bits: a rounding is off by up to 2^-9 = 0.002; probabilities and results are rounded.
        error = (value.float() - expected).norm() / expected.norm()
        assert error < 0.004, f"{name} is off by {error:.4f}"


def test_a_token_sees_its_own_row_and_nothing_later():
    """Changing a token changes what later tokens of its own row give, bit for bit nothing else."""
    query, key, value, _ = inputs(4, 2, 16)
    before = attend(query, key, value, 0.25)
    # Of the first pair a token of the prefix, of the chosen rest, of the rejected rest: who sees it.
    for token, seers in {7: [(7, 492)], 200: [(200, 341)], 400: [(400, 492)]}.items():
        other = key.clone(), value.clone()
        for x in other:
            x[:, token] += 1
        changed = (attend(query, *other, 0.25) != before).any(2).any(1)
        expected = torch.zeros(TOTAL, dtype=torch.bool)
        for first, last in seers:
            expected[first:last] = True
        assert torch.equal(changed, expected)


def test_gradients_lie_as_their_tensors_do():
    *tensors, grad = inputs(4, 2, 16)
    _, *grads = differentiated(by_kernel, tensors, grad)
    assert [x.stride() for x in grads] == [x.stride() for x in tensors]
    strided = torch.randn(4, 16, TOTAL).to(torch.bfloat16).transpose(1, 2)
    plain = differentiated(by_kernel, [strided.contiguous(), *tensors[1:]], grad)
    for one, other in zip(differentiated(by_kernel, [strided, *tensors[1:]], grad), plain, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("size", [16, 2**10])
def test_scores_of_any_size_keep_the_softmax_whole(size):
    """Scores of a million, and of 10^11, far beyond what an exponential can hold: the largest take it all, and share it
    where they are equal. Whole numbers, so that no route rounds them before the softmax."""
    query, key, value, grad = inputs(2, 1, 16)
    far = [(64 * x).round() * size for x in (query, key)]
    exact = differentiated(by_sdpa, [tensor.double() for tensor in (*far, value)], grad.double())
    mine = differentiated(by_kernel, [*far, value], grad)
    for got, expected in zip((mine[0], mine[3]), (exact[0], exact[3]), strict=True):
        assert (got.float() - expected).norm() / expected.norm() < 0.004
    assert all(x.isfinite().all() for x in mine)


def test_what_the_kernel_does_not_take_goes_to_sdpa():
    """Values narrower than keys (multi-head latent attention), heads of an odd size."""
    for size, value_size in ((16, 8), (15, 15)):
        query, key, value, _ = inputs(2, 2, size)
        tensors = [query, key, value[..., :value_size]]
        layout = PackLayout(SEGMENTS)
        out, _ = packed_attention(torch.nn.Module(), *(x[None] for x in tensors), None, pack=layout)
        exact, _ = packed_attention(torch.nn.Module(), *(x[None].float() for x in tensors), None, pack=layout)
        assert (out.float() - exact).norm() / exact.norm() < 0.01


def test_default_dtype_and_device_are_not_the_kernels():
    *tensors, grad = inputs(2, 1, 16)
    plain = differentiated(by_kernel, tensors, grad)
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("meta"):
            other = differentiated(by_kernel, tensors, grad)
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(torch.equal(x, y) for x, y in zip(plain, other, strict=True))


def test_there_is_no_second_derivative():
    *tensors, _ = inputs(2, 1, 16)
    out = by_kernel(*(x.requires_grad_() for x in tensors))
    (grad,) = torch.autograd.grad(out.float().square().sum(), tensors[0], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.float().sum().backward()


def test_packs_in_bfloat16_on_a_cpu_take_this_route_and_no_other():
    *tensors, _ = inputs(4, 2, 16)
    direct = attend(*tensors, 16**-0.5)
    query, key, value = (tensor[None] for tensor in tensors)
    routed, _ = packed_attention(torch.nn.Module(), query, key, value, None, pack=PackLayout(SEGMENTS))
    assert torch.equal(routed[0], direct)
