"""The CPU's kernels against the torch expressions they stand for, in float32 on the same bfloat16 numbers."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from minimind import native
from minimind.native.library import library

pytestmark = pytest.mark.skipif(library() is None, reason="no compiler here for the CPU kernels")

# bfloat16 has 8 bits: one rounding is off by up to 2^-9, relative to the number.
ROUNDING = 2**-8


def numbers(*shape: int, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale).to(torch.bfloat16)


def assert_rounded(ours: torch.Tensor, exact: torch.Tensor) -> None:
    """Every element is the exact one, rounded to bfloat16."""
    assert ours.dtype == torch.bfloat16
    torch.testing.assert_close(ours.float(), exact, rtol=ROUNDING, atol=1e-6)


def differentiated(function, inputs, seed: int = 9):
    leaves = [x.clone().requires_grad_() for x in inputs]
    out = function(*leaves)
    out.backward(numbers(*out.shape, seed=seed).to(out.dtype))
    return out.detach(), [leaf.grad for leaf in leaves]


def compare(ours, exact, *inputs, atol: float = 1e-6) -> None:
    """Value and gradients; `exact` gets the same numbers in float32."""
    out, grads = differentiated(ours, inputs)
    expected, expected_grads = differentiated(exact, [x.float() for x in inputs])
    assert_rounded(out, expected)
    for grad, other in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(grad.float(), other, rtol=ROUNDING, atol=atol)


# 5 rows: one thread; 300 x 96: several. 7 and 37: not whole vectors.
@pytest.mark.parametrize("shape", [(5, 7), (2, 3, 37), (300, 96)])
def test_rms_norm(shape):
    x, weight = numbers(*shape), numbers(shape[-1], seed=1)
    compare(
        lambda x, w: native.rms_norm(x, w, 1e-5), lambda x, w: F.rms_norm(x, w.shape, w, 1e-5), x, weight, atol=2e-5
    )


@pytest.mark.parametrize("used", [(0, 1), (0,), (1,)])
def test_rms_norm_beside_a_stream(used):
    """The stream is x, bit for bit; its gradient and the norm's are one sum, rounded once, whichever there are."""
    inputs, upstream = (numbers(70, 520), numbers(520, seed=1)), (numbers(70, 520, seed=2), numbers(70, 520, seed=3))
    leaves, exact = (
        [x.to(dtype, copy=True).requires_grad_() for x in inputs] for dtype in (torch.bfloat16, torch.float32)
    )
    outs = native.rms_norm_beside(*leaves, 1e-5)
    exact_outs = F.rms_norm(exact[0], (520,), exact[1], 1e-5), exact[0]
    assert torch.equal(outs[0], native.rms_norm(*inputs, 1e-5))
    assert torch.equal(outs[1], inputs[0])
    torch.autograd.backward([outs[i] for i in used], [upstream[i] for i in used])
    torch.autograd.backward([exact_outs[i] for i in used], [upstream[i].float() for i in used])
    torch.testing.assert_close(leaves[0].grad.float(), exact[0].grad, rtol=ROUNDING, atol=2e-5)
    if used == (1,):
        assert leaves[1].grad is None
    else:
        torch.testing.assert_close(leaves[1].grad.float(), exact[1].grad, rtol=ROUNDING, atol=2e-5)


def test_rms_norm_of_what_is_not_contiguous():
    x = numbers(6, 4, 8).transpose(0, 1)
    weight = numbers(8, seed=1)
    compare(lambda x, w: native.rms_norm(x, w, 1e-5), lambda x, w: F.rms_norm(x, (8,), w, 1e-5), x, weight, atol=2e-5)


@pytest.mark.parametrize(("tokens", "heads", "size"), [(3, 2, 6), (200, 4, 64)])
def test_rotate(tokens, heads, size):
    angles = torch.randn(tokens, size // 2, generator=torch.Generator().manual_seed(2))
    cos, sin = angles.cos(), angles.sin()

    def exact(x):
        first, second = x.transpose(0, 1).chunk(2, dim=-1)
        return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)

    compare(lambda x: native.rotate(x, cos, sin), exact, numbers(tokens, heads, size))


@pytest.mark.parametrize(("tokens", "heads", "size"), [(3, 2, 6), (5, 1, 34), (200, 4, 64)])
def test_norm_rotate(tokens, heads, size):
    angles = torch.randn(tokens, size // 2, generator=torch.Generator().manual_seed(2))
    cos, sin = angles.cos(), angles.sin()

    def exact(x, weight):
        first, second = F.rms_norm(x, (size,), weight, 1e-5).transpose(0, 1).chunk(2, dim=-1)
        return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)

    x, weight = numbers(tokens, heads, size), numbers(size, seed=1)
    compare(lambda x, w: native.norm_rotate(x, w, 1e-5, cos, sin), exact, x, weight, atol=2e-5)


@pytest.mark.parametrize("shape", [(3, 5), (200, 130)])
def test_swiglu(shape):
    compare(native.swiglu, lambda g, u: F.silu(g) * u, numbers(*shape, scale=4), numbers(*shape, seed=1), atol=1e-6)


def test_swiglu_far_out_neither_overflows_nor_is_off():
    """e^100 is beyond float32: silu(-100) is 0, silu(100) is 100, and neither is a NaN."""
    gate = torch.tensor([-1e4, -100, -88, 0, 88, 100, 1e4], dtype=torch.bfloat16)
    assert_rounded(native.swiglu(gate, torch.ones_like(gate)), F.silu(gate.float()))


@pytest.mark.parametrize("count", [1, 15, 33, 2**14 + 7, 100_003])
def test_widen_is_exact_and_sums_squares_in_float64(count):
    x = numbers(count, scale=3)
    # Beyond float32 once squared.
    x[0] = 1e30
    out = torch.empty(count)
    squares = native.widen(x, out)
    assert torch.equal(out, x.float())
    assert squares == pytest.approx(x.double().square().sum().item(), rel=1e-14)


@pytest.mark.parametrize("odd", [math.nan, math.inf])
def test_widen_keeps_what_is_not_finite(odd):
    x = numbers(40)
    x[39] = odd
    assert not math.isfinite(native.widen(x, out := torch.empty(40)))
    assert torch.equal(out.isnan(), x.isnan())
    assert torch.equal(out.isinf(), x.isinf())


def carried(blocks, targets):
    largest, total = torch.full((len(targets),), -torch.inf), torch.zeros(len(targets))
    at_target, start = torch.zeros(len(targets)), 0
    for block in blocks:
        native.log_sum_block_(block, targets, start, largest, total, at_target)
        start += block.shape[1]
    return largest + total.log(), at_target


@pytest.mark.parametrize("widths", [(50,), (20, 30), (1, 48, 1)])
def test_log_sums_over_blocks(widths):
    logits, targets = numbers(40, 50, scale=6), torch.arange(40) + 5
    blocks = [block.contiguous() for block in logits.split(widths, dim=1)]
    log_sum, at_target = carried(blocks, targets)
    torch.testing.assert_close(log_sum, logits.float().logsumexp(1), rtol=1e-6, atol=1e-6)
    assert torch.equal(at_target, logits.float().gather(1, targets[:, None])[:, 0])

    grad = torch.linspace(-2, 2, 40)
    expected = grad[:, None] * (F.one_hot(targets, 50) - logits.float().softmax(1))
    start = 0
    for block in blocks:
        ours = native.log_sum_block_backward_(block, targets, start, log_sum, grad)
        assert_rounded(ours, expected[:, start : start + ours.shape[1]])
        start += ours.shape[1]


def test_log_sums_pass_over_tokens_that_cannot_be():
    """A bias of minus infinity rules tokens out, a whole block of them at first and at last."""
    logits = numbers(3, 6)
    logits[:, :2] = logits[:, 4:] = -torch.inf
    log_sum, _ = carried([block.contiguous() for block in logits.split(2, dim=1)], torch.tensor([2, 3, 2]))
    torch.testing.assert_close(log_sum, logits.float().logsumexp(1), rtol=1e-6, atol=1e-6)


def test_log_sums_of_a_block_of_nans_are_nan():
    """No NaN is larger than minus infinity: it must not pass for a block of tokens that cannot be."""
    logits = numbers(2, 6)
    logits[0, :3] = torch.nan
    log_sum, _ = carried([block.contiguous() for block in logits.split(3, dim=1)], torch.tensor([4, 4]))
    assert log_sum.isnan().tolist() == [True, False]


def test_the_log_prob_of_a_token_that_cannot_be_is_minus_infinity():
    logits = numbers(2, 6)
    logits[:, :3] = -torch.inf
    log_sum, at_target = carried([block.contiguous() for block in logits.split(3, dim=1)], torch.tensor([1, 4]))
    torch.testing.assert_close(at_target - log_sum, logits.float().log_softmax(1)[[0, 1], [1, 4]])


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_not_finite_stays_visible(bad):
    """A kernel that made a number of a NaN would hide the step that must stop the run."""
    x = numbers(4, 32)
    x[1, 3] = bad
    ones = torch.ones(32, dtype=torch.bfloat16)
    results = {
        "rms_norm": native.rms_norm(x, ones, 1e-5),
        "rotate": native.rotate(x[:, None], torch.ones(4, 16), torch.ones(4, 16))[0],
        "norm_rotate": native.norm_rotate(x[:, None], ones, 1e-5, torch.ones(4, 16), torch.ones(4, 16))[0],
        "swiglu": native.swiglu(torch.ones_like(x), x),
        "attention": native.packed_attention(x[None], ones.expand(1, 4, 32), ones.expand(1, 4, 32), ((0, 4, 0),), 1.0),
        "log sums": carried([x], torch.zeros(4, dtype=torch.int64))[0],
    }
    for name, result in results.items():
        finite = result.reshape(4, -1).isfinite().all(1)
        assert finite.tolist() == [True, False, True, True], name


def test_kernels_are_for_bfloat16_on_a_cpu_only():
    assert native.applies(numbers(2))
    assert not native.applies(numbers(2), torch.zeros(2))
    assert not native.applies(torch.zeros(2, device="meta", dtype=torch.bfloat16))
