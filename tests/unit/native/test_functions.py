"""The kernels of kernels.cpp against torch's way, in float32 on the same bfloat16 numbers."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from minimind.native import functions, torch_ops

pytestmark = pytest.mark.usefixtures("cpu_kernels")

# bfloat16 has 8 significant bits: one rounding changes a number by at most 2^-9 of itself.
ROUNDING = 2**-8


def numbers(*shape: int, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale).to(torch.bfloat16)


def assert_rounded(ours: torch.Tensor, exact: torch.Tensor) -> None:
    """Every element is the exact one, rounded to bfloat16."""
    assert ours.dtype == torch.bfloat16
    torch.testing.assert_close(ours.float(), exact, rtol=ROUNDING, atol=1e-6)


def value_and_gradients(function, inputs, seed: int = 9):
    leaves = [x.clone().requires_grad_() for x in inputs]
    out = function(*leaves)
    out.backward(numbers(*out.shape, seed=seed).to(out.dtype))
    return out.detach(), [leaf.grad for leaf in leaves]


def compare(ours, exact, *inputs, atol: float = 1e-6) -> None:
    """Value and gradients; `exact` gets the same numbers in float32."""
    out, grads = value_and_gradients(ours, inputs)
    expected, expected_grads = value_and_gradients(exact, [x.float() for x in inputs])
    assert_rounded(out, expected)
    for grad, other in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(grad.float(), other, rtol=ROUNDING, atol=atol)


def rotary(tokens: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    angles = torch.randn(1, tokens, size // 2, generator=torch.Generator().manual_seed(2))
    return angles.cos(), angles.sin()


# Fewer elements than 2^14 run on one thread, more on several. 7 and 37 are no whole number of vectors.
@pytest.mark.parametrize("shape", [(5, 7), (2, 3, 37), (180, 96)])
def test_rms_norm(shape):
    x, weight = numbers(*shape), numbers(shape[-1], seed=1)
    compare(
        lambda x, w: functions.rms_norm(x, w, 1e-5), lambda x, w: torch_ops.rms_norm(x, w, 1e-5), x, weight, atol=2e-5
    )


@pytest.mark.parametrize("used", [(0, 1), (0,), (1,)])
def test_rms_norm_with_residual(used):
    """The residual is x, bit for bit; x's gradient is the sum of those of the results that are used, rounded once."""
    inputs, upstream = (numbers(70, 260), numbers(260, seed=1)), (numbers(70, 260, seed=2), numbers(70, 260, seed=3))
    leaves, exact = (
        [x.to(dtype, copy=True).requires_grad_() for x in inputs] for dtype in (torch.bfloat16, torch.float32)
    )
    outs = functions.rms_norm_with_residual(*leaves, 1e-5)
    exact_outs = torch_ops.rms_norm_with_residual(*exact, 1e-5)
    assert torch.equal(outs[0], functions.rms_norm(*inputs, 1e-5))
    assert torch.equal(outs[1], inputs[0])
    torch.autograd.backward([outs[i] for i in used], [upstream[i] for i in used])
    torch.autograd.backward([exact_outs[i] for i in used], [upstream[i].float() for i in used])
    torch.testing.assert_close(leaves[0].grad.float(), exact[0].grad, rtol=ROUNDING, atol=2e-5)
    if used == (1,):
        assert leaves[1].grad is None
    else:
        torch.testing.assert_close(leaves[1].grad.float(), exact[1].grad, rtol=ROUNDING, atol=2e-5)


def test_rms_norm_of_a_transposed_tensor():
    x = numbers(6, 4, 8).transpose(0, 1)
    weight = numbers(8, seed=1)
    compare(
        lambda x, w: functions.rms_norm(x, w, 1e-5), lambda x, w: torch_ops.rms_norm(x, w, 1e-5), x, weight, atol=2e-5
    )


@pytest.mark.parametrize(("tokens", "heads", "size"), [(3, 2, 6), (70, 4, 64)])
def test_rotate(tokens, heads, size):
    cos_sin = rotary(tokens, size)
    compare(
        lambda x: functions.rotate(x, *cos_sin),
        lambda x: torch_ops.rotate(x, *cos_sin),
        numbers(1, tokens, heads, size),
    )


@pytest.mark.parametrize(("tokens", "heads", "size"), [(3, 2, 6), (5, 1, 34), (70, 4, 64)])
def test_norm_rotate(tokens, heads, size):
    cos_sin = rotary(tokens, size)
    compare(
        lambda x, w: functions.norm_rotate(x, w, 1e-5, *cos_sin),
        lambda x, w: torch_ops.norm_rotate(x, w, 1e-5, *cos_sin),
        numbers(1, tokens, heads, size),
        numbers(size, seed=1),
        atol=2e-5,
    )


@pytest.mark.parametrize("shape", [(3, 5), (130, 130)])
def test_swiglu(shape):
    compare(functions.swiglu, torch_ops.swiglu, numbers(*shape, scale=4), numbers(*shape, seed=1), atol=1e-6)


def test_swiglu_of_large_gates_is_finite_and_exact():
    """e^100 overflows float32: silu(-100) is 0, silu(100) is 100, and neither is a NaN."""
    gate = torch.tensor([-1e4, -100, -88, 0, 88, 100, 1e4], dtype=torch.bfloat16)
    assert_rounded(functions.swiglu(gate, torch.ones_like(gate)), F.silu(gate.float()))


@pytest.mark.parametrize("count", [1, 15, 33, 2**14 + 7, 50_003])
def test_cast_and_sum_squares_is_exact_and_sums_in_float64(count):
    x = numbers(count, scale=3)
    x[0] = 1e30  # its square overflows float32
    out = torch.empty(count)
    squares = functions.cast_and_sum_squares(x, out)
    assert torch.equal(out, x.float())
    assert squares == pytest.approx(x.double().square().sum().item(), rel=1e-14)


@pytest.mark.parametrize("nonfinite", [math.nan, math.inf])
def test_cast_and_sum_squares_keeps_nonfinite_numbers(nonfinite):
    x = numbers(40)
    x[39] = nonfinite
    assert not math.isfinite(functions.cast_and_sum_squares(x, out := torch.empty(40)))
    assert torch.equal(out.isnan(), x.isnan())
    assert torch.equal(out.isinf(), x.isinf())


def log_sum_of(blocks, targets):
    total, start = functions.LogSum(targets, torch.float32), 0
    for block in blocks:
        total.add(block, start)
        start += block.shape[1]
    return total.result()


@pytest.mark.parametrize("widths", [(50,), (20, 30), (1, 48, 1)])
def test_log_sum_and_its_gradient_over_blocks(widths):
    logits, targets = numbers(40, 50, scale=6), torch.arange(40) + 5
    blocks = [block.contiguous() for block in logits.split(widths, dim=1)]
    log_sum, at_target = log_sum_of(blocks, targets)
    torch.testing.assert_close(log_sum, logits.float().logsumexp(1), rtol=1e-6, atol=1e-6)
    assert torch.equal(at_target, logits.float().gather(1, targets[:, None])[:, 0])

    grad = torch.linspace(-2, 2, 40)
    expected = grad[:, None] * (F.one_hot(targets, 50) - logits.float().softmax(1))
    start = 0
    for block in blocks:
        ours = functions.log_sum_gradient(block, targets, start, log_sum, grad)
        assert_rounded(ours, expected[:, start : start + ours.shape[1]])
        start += ours.shape[1]


def test_log_sum_skips_tokens_with_logits_of_minus_infinity():
    """A bias of minus infinity excludes tokens: here the whole first and the whole last block."""
    logits = numbers(3, 6)
    logits[:, :2] = logits[:, 4:] = -torch.inf
    log_sum, _ = log_sum_of([block.contiguous() for block in logits.split(2, dim=1)], torch.tensor([2, 3, 2]))
    torch.testing.assert_close(log_sum, logits.float().logsumexp(1), rtol=1e-6, atol=1e-6)


def test_log_sum_of_a_block_of_nans_is_nan():
    """A NaN is not larger than minus infinity: the block must not be taken for one of excluded tokens."""
    logits = numbers(2, 6)
    logits[0, :3] = torch.nan
    log_sum, _ = log_sum_of([block.contiguous() for block in logits.split(3, dim=1)], torch.tensor([4, 4]))
    assert log_sum.isnan().tolist() == [True, False]


def test_log_prob_of_an_excluded_token_is_minus_infinity():
    logits = numbers(2, 6)
    logits[:, :3] = -torch.inf
    log_sum, at_target = log_sum_of([block.contiguous() for block in logits.split(3, dim=1)], torch.tensor([1, 4]))
    torch.testing.assert_close(at_target - log_sum, logits.float().log_softmax(1)[[0, 1], [1, 4]])


@pytest.mark.parametrize("widths", [(50,), (20, 30), (1, 48, 1)])
def test_the_distribution_comes_in_the_same_pass_and_changes_no_bit(widths):
    logits, targets = numbers(40, 50, scale=6), torch.arange(40) + 5
    logits[:, 7] = logits[5:, -1] = -torch.inf  # excluded tokens
    logits[0, 5] = logits[1, 49] = 40.0
    logits[2, 7:9] = 40.0  # a tie of the target and another token
    targets[2] = 8
    blocks = [block.contiguous() for block in logits.split(widths, dim=1)]
    alone = log_sum_of(blocks, targets)
    total, start = functions.LogSum(targets, torch.float32, distribution=True), 0
    for block in blocks:
        total.add(block, start)
        start += block.shape[1]
    assert all(torch.equal(one, other) for one, other in zip(total.result(), alone, strict=True))
    entropies, hits = total.distribution()
    expected = torch.distributions.Categorical(logits=logits.double()).probs
    torch.testing.assert_close(entropies.double(), torch.special.entr(expected).sum(1), rtol=1e-5, atol=1e-5)
    assert hits.tolist() == (alone[1] == logits.float().amax(1)).float().tolist()
    assert hits[:3].tolist() == [1, 0, 1]


@pytest.mark.parametrize("nonfinite", [torch.nan, torch.inf])
def test_nonfinite_inputs_give_nonfinite_results(nonfinite):
    """A kernel that turned a NaN into a number would hide the step at which the run must stop."""
    x = numbers(4, 32)
    x[1, 3] = nonfinite
    ones, heads = torch.ones(32, dtype=torch.bfloat16), x[None, :, None]
    cos_sin = torch.ones(1, 4, 16), torch.ones(1, 4, 16)
    keys = ones.expand(1, 1, 4, 32)
    results = {
        "rms_norm": functions.rms_norm(x, ones, 1e-5),
        "rotate": functions.rotate(heads, *cos_sin),
        "norm_rotate": functions.norm_rotate(heads, ones, 1e-5, *cos_sin),
        "swiglu": functions.swiglu(torch.ones_like(x), x),
        "attention": functions.packed_attention(x[None, None], keys, keys, ((0, 4, 0),), 1.0),
        "log_sum": log_sum_of([x], torch.zeros(4, dtype=torch.int64))[0],
    }
    for name, result in results.items():
        finite = result.reshape(4, -1).isfinite().all(1)
        assert finite.tolist() == [True, False, True, True], name
