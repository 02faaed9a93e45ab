"""The CPU's bfloat16 kernel of attention over packs, against torch's SDPA in float32."""

from __future__ import annotations

import pytest
import torch

from minimind.model.packed_attention import PackSegments, packed_attention
from minimind.native import functions

pytestmark = pytest.mark.usefixtures("cpu_kernels")

# A block has 64 queries at most and 120 keys. More queries than a block, fewer, a whole number of blocks and one more;
# more keys than a block, odd numbers of them; no prefix, no rest of rejected or of chosen, single tokens.
SEGMENTS = ((41, 150, 71), (0, 17, 9), (70, 5, 0), (20, 0, 130), (64, 65, 1), (1, 1, 1))
TOTAL = sum(map(sum, SEGMENTS))


def inputs(heads: int, kv_heads: int, size: int) -> tuple[torch.Tensor, ...]:
    """Query, key, value and the output's gradient, heads first; the values are a transposed view, as in a model."""
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


# No power of two, so that multiplying by it rounds.
SCALING = 0.3


def by_sdpa(query, key, value):
    """The same in float32, where torch's SDPA computes it."""
    out, _ = packed_attention(
        torch.nn.Module(), query[None], key[None], value[None], None, pack=PackSegments(SEGMENTS), scaling=SCALING
    )
    return out[0].transpose(0, 1)


def by_kernel(query, key, value):
    return attend(query, key, value, SCALING).transpose(0, 1)


def attend(query, key, value, scaling):
    """The kernel's attention without the batch dimension: (heads, T, D) -> (T, heads, D)."""
    return functions.packed_attention(query[None], key[None], value[None], SEGMENTS, scaling)[0]


# Head sizes that are a multiple of a vector, that are not, and one that is shorter than any vector.
@pytest.mark.parametrize(("heads", "kv_heads", "size"), [(4, 4, 16), (4, 2, 64), (6, 1, 96), (2, 2, 10), (2, 1, 2)])
def test_outputs_and_gradients_agree_with_sdpa(heads, kv_heads, size):
    *tensors, grad = inputs(heads, kv_heads, size)
    exact = differentiated(by_sdpa, [tensor.float() for tensor in tensors], grad.float())
    mine = differentiated(by_kernel, tensors, grad)
    for name, value, expected in zip(("out", "query", "key", "value"), mine, exact, strict=True):
        assert value.dtype == torch.bfloat16
        # bfloat16 has 8 bits: a rounding changes a number by up to 2^-9 = 0.002; probabilities and results are rounded.
        error = (value.float() - expected).norm() / expected.norm()
        assert error < 0.004, f"{name} is off by {error:.4f}"


def test_a_token_sees_earlier_tokens_of_its_own_row_only():
    """Changing a key and its value changes later outputs of the same row, and no other output by a bit."""
    query, key, value, _ = inputs(4, 2, 16)
    before = attend(query, key, value, 0.25)
    # Tokens of the first pair's prefix (0 to 41), chosen (to 191) and rejected part (to 262), and which outputs change.
    for token, changing in {7: [(7, 262)], 100: [(100, 191)], 200: [(200, 262)]}.items():
        other = key.clone(), value.clone()
        for x in other:
            x[:, token] += 1
        changed = (attend(query, *other, 0.25) != before).any(2).any(1)
        expected = torch.zeros(TOTAL, dtype=torch.bool)
        for first, last in changing:
            expected[first:last] = True
        assert torch.equal(changed, expected)


def test_gradients_have_the_strides_of_their_tensors():
    *tensors, grad = inputs(4, 2, 16)
    _, *grads = differentiated(by_kernel, tensors, grad)
    assert [x.stride() for x in grads] == [x.stride() for x in tensors]
    strided = torch.randn(4, 16, TOTAL).to(torch.bfloat16).transpose(1, 2)
    plain = differentiated(by_kernel, [strided.contiguous(), *tensors[1:]], grad)
    for one, other in zip(differentiated(by_kernel, [strided, *tensors[1:]], grad), plain, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("size", [16, 2**10])
def test_softmax_of_huge_scores_is_exact(size):
    """Scores of a million and of 10^11, whose exponentials would overflow: the largest score gets probability 1, equal
    ones share it. Scores are whole numbers, so that neither way rounds them before the softmax."""
    query, key, value, grad = inputs(2, 1, 16)
    large = [(64 * x).round() * size for x in (query, key)]
    exact = differentiated(by_sdpa, [tensor.double() for tensor in (*large, value)], grad.double())
    mine = differentiated(by_kernel, [*large, value], grad)
    for got, expected in zip((mine[0], mine[3]), (exact[0], exact[3]), strict=True):
        assert (got.float() - expected).norm() / expected.norm() < 0.004
    assert all(x.isfinite().all() for x in mine)


def test_default_dtype_and_device_have_no_effect():
    *tensors, grad = inputs(2, 1, 16)
    plain = differentiated(by_kernel, tensors, grad)
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("meta"):
            other = differentiated(by_kernel, tensors, grad)
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(torch.equal(x, y) for x, y in zip(plain, other, strict=True))


def test_a_second_derivative_is_refused():
    *tensors, _ = inputs(2, 1, 16)
    out = by_kernel(*(x.requires_grad_() for x in tensors))
    (grad,) = torch.autograd.grad(out.float().square().sum(), tensors[0], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.float().sum().backward()


def test_the_attention_interface_uses_the_kernel():
    *tensors, _ = inputs(4, 2, 16)
    direct = attend(*tensors, 16**-0.5)
    query, key, value = (tensor[None] for tensor in tensors)
    routed, _ = packed_attention(torch.nn.Module(), query, key, value, None, pack=PackSegments(SEGMENTS))
    assert torch.equal(routed[0], direct)
