"""Log-probs of targets equal a plain log-softmax in value and gradient, for any block size, dtype and bias."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from minimind.objective import log_probs as module
from minimind.objective.log_probs import (
    log_collisions,
    logits_distributions,
    logits_to_log_probs,
    target_distributions,
    target_log_probs,
)

K, H, V = 7, 5, 23


def inputs(dtype: torch.dtype = torch.float32, scale: float = 1.0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Hidden states, head, bias and targets; the targets include the first and the last token."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(K, H, generator=generator) * scale
    weight = torch.randn(V, H, generator=generator)
    bias = torch.randn(V, generator=generator)
    targets = torch.tensor([0, V - 1, 3, 3, 11, 12, 7])
    return hidden.to(dtype), weight.to(dtype), bias.to(dtype), targets


def plain(hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None) -> Tensor:
    logits = hidden @ weight.T
    if bias is not None:
        logits = logits + bias
    return logits.log_softmax(-1).gather(1, targets[:, None])[:, 0]


def value_and_gradients(score, hidden, weight, targets, bias):
    leaves = [tensor.clone().requires_grad_() for tensor in (hidden, weight)]
    if bias is not None:
        leaves.append(bias.clone().requires_grad_())
    out = score(leaves[0], leaves[1], targets, leaves[2] if bias is not None else None)
    # Different upstream gradients, so that a target that gets its neighbour's gradient is noticed.
    (out * torch.arange(1, K + 1)).sum().backward()
    return out.detach(), [leaf.grad for leaf in leaves]


# 2**25 is the size in use: one block here. With K = 7 targets in float32 a block of one token has 28 bytes, one of five
# 140 (the first block is shorter: 23 = 3 + 4 * 5). 4 bytes are too few for one token, which is a block then
# all the same.
@pytest.mark.parametrize("block_bytes", [2**25, 140, 28, 4])
@pytest.mark.parametrize("with_bias", [False, True])
def test_target_log_probs_equal_log_softmax(monkeypatch, block_bytes, with_bias):
    monkeypatch.setattr(module, "block_bytes", lambda on_cpu: block_bytes)
    hidden, weight, bias, targets = inputs()
    given = bias if with_bias else None
    ours, our_gradients = value_and_gradients(target_log_probs, hidden, weight, targets, given)
    theirs, their_gradients = value_and_gradients(plain, hidden, weight, targets, given)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    for one, other in zip(our_gradients, their_gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_blocks_cover_the_vocabulary_once_and_stay_within_the_limit(monkeypatch):
    # 48 bytes are 12 float32 numbers: with 3 targets, blocks of 4 tokens over a vocabulary of 10.
    monkeypatch.setattr(module, "block_bytes", lambda on_cpu: 48)
    targets, weight = torch.zeros(3, dtype=torch.int64), torch.zeros(10, H)
    assert module._blocks(targets, weight, torch.float32) == [(0, 2), (2, 6), (6, 10)]
    # 200 tokens would fit; the largest multiple of 64 is 192.
    monkeypatch.setattr(module, "block_bytes", lambda on_cpu: 200 * 12)
    assert module._blocks(targets, torch.zeros(400, H), torch.float32) == [(0, 16), (16, 208), (208, 400)]


@pytest.mark.parametrize(("device", "blocks"), [("cpu", 75), ("meta", 10)])
def test_blocks_on_a_gpu_are_eight_times_as_large(device, blocks):
    """The vocabulary of Qwen3; blocks of 2048 and of 16384 tokens."""
    targets, weight = torch.zeros(4096, dtype=torch.int64, device=device), torch.zeros(151_936, 1, device=device)
    assert len(module._blocks(targets, weight, torch.float32)) == blocks


def test_logits_are_never_larger_than_a_block(monkeypatch):
    sizes, make = [], module._block_logits

    def watched(*args):
        block = make(*args)
        sizes.append(block.numel())
        return block

    monkeypatch.setattr(module, "block_bytes", lambda on_cpu: 140)
    monkeypatch.setattr(module, "_block_logits", watched)
    hidden, weight, bias, targets = inputs()
    value_and_gradients(target_log_probs, hidden, weight, targets, bias)
    # Five blocks in forward. Backward reuses the last one and recomputes four.
    assert len(sizes) == 9
    assert max(sizes) <= 35


@pytest.mark.parametrize("block_bytes", [2**25, 28])
def test_a_second_backward_recomputes_all_blocks(monkeypatch, block_bytes, either_kernels):
    """The first backward has overwritten the block that forward left."""
    monkeypatch.setattr(module, "block_bytes", lambda on_cpu: block_bytes)
    hidden, weight, bias, targets = inputs(torch.bfloat16)
    leaves = [tensor.requires_grad_() for tensor in (hidden, weight, bias)]
    out = target_log_probs(hidden, weight, targets, bias)
    first = torch.autograd.grad(out.sum(), leaves, retain_graph=True)
    for one, other in zip(first, torch.autograd.grad(out.sum(), leaves), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("block_bytes", [2**25, 112])
@pytest.mark.parametrize("with_bias", [False, True])
def test_gradcheck_in_float64(monkeypatch, block_bytes, with_bias):
    monkeypatch.setattr(module, "block_bytes", lambda on_cpu: block_bytes)
    hidden, weight, bias, targets = inputs(torch.float64)
    leaves = [tensor.requires_grad_() for tensor in ((hidden, weight, bias) if with_bias else (hidden, weight))]

    def score(hidden, weight, bias=None):
        return target_log_probs(hidden, weight, targets, bias)

    assert torch.autograd.gradcheck(score, leaves)
    assert score(*leaves).dtype == torch.float64


@pytest.mark.parametrize("block_bytes", [2**25, 28])
def test_log_probs_of_bf16_inputs_are_close_to_float32(monkeypatch, block_bytes, either_kernels):
    """Compared with float32 on the same rounded inputs. What remains is bf16's rounding of each logit, 2**-9 of its
    size, twice: in the target's logit and in the log-sum-exp."""
    monkeypatch.setattr(module, "block_bytes", lambda on_cpu: block_bytes)
    hidden, weight, bias, targets = inputs(torch.bfloat16)
    ours, gradients = value_and_gradients(target_log_probs, hidden, weight, targets, bias)
    truth, true_gradients = value_and_gradients(plain, hidden.float(), weight.float(), targets, bias.float())
    largest = (hidden.float() @ weight.float().T).abs().max().item() + bias.abs().max().item()
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, truth, rtol=0, atol=3 * 2**-9 * largest)
    for one, other in zip(gradients, true_gradients, strict=True):
        assert one.dtype == torch.bfloat16
        assert (one.float() - other).norm() <= 0.02 * other.norm()


def test_log_probs_of_bf16_inputs_are_finer_than_bf16(either_kernels):
    """Near -9 bf16 numbers are 1/16 apart: rounded to them, small margins of DPO would vanish."""
    hidden, weight, _, targets = inputs(torch.bfloat16)
    out = target_log_probs(hidden, weight, targets)
    assert (out != out.bfloat16().float()).any()


def test_zero_targets_give_an_empty_result_and_zero_gradients():
    _, weight, bias, _ = inputs()
    hidden = torch.zeros(0, H, requires_grad=True)
    weight.requires_grad_()
    bias.requires_grad_()
    out = target_log_probs(hidden, weight, torch.zeros(0, dtype=torch.int64), bias)
    assert out.shape == (0,)
    assert out.dtype == torch.float32
    out.sum().backward()
    assert hidden.grad.shape == (0, H)
    assert torch.equal(weight.grad, torch.zeros(V, H))
    assert torch.equal(bias.grad, torch.zeros(V))


def test_a_frozen_head_gets_no_gradient():
    hidden, weight, bias, targets = inputs()
    hidden.requires_grad_()
    target_log_probs(hidden, weight, targets, bias).sum().backward()
    assert hidden.grad is not None
    assert weight.grad is None
    assert bias.grad is None


def test_a_frozen_backbone_still_trains_the_head():
    hidden, weight, _, targets = inputs()
    weight.requires_grad_()
    target_log_probs(hidden, weight, targets).sum().backward()
    theirs = inputs()[1].requires_grad_()
    plain(hidden, theirs, targets, None).sum().backward()
    torch.testing.assert_close(weight.grad, theirs.grad)


def test_huge_logits_stay_finite():
    """The exponential of 1e4 overflows. With one logit of 1e4 and others of 0 the log-probs are 0 and -1e4."""
    hidden, weight = torch.tensor([[1e4], [1e4]]), torch.tensor([[1.0], [0.0], [0.0]])
    out = target_log_probs(hidden, weight, torch.tensor([0, 2]))
    assert out.tolist() == [0.0, -1e4]


def test_logits_to_log_probs_by_hand():
    # exp: (1, 3) of 4, so ln(1/4) and ln(3/4); then (1, 1) of 2, so ln(1/2).
    logits = torch.tensor([[[0.0, math.log(3)], [0.0, math.log(3)], [5.0, 5.0]]])
    out = logits_to_log_probs(logits, torch.tensor([[0, 1, 0]]))
    torch.testing.assert_close(out, torch.tensor([[math.log(1 / 4), math.log(3 / 4), math.log(1 / 2)]]))


def test_logits_to_log_probs_computes_in_float32():
    logits = torch.tensor([[[0.0, 1.0, 2.0]]], dtype=torch.bfloat16)
    out = logits_to_log_probs(logits, torch.tensor([[0]]))
    assert out.dtype == torch.float32
    # -ln(1 + e + e**2)
    assert out.item() == pytest.approx(-math.log(1 + math.e + math.e**2), abs=1e-6)


@pytest.mark.parametrize("block_bytes", [2**25, 140, 28])
@pytest.mark.parametrize("with_bias", [False, True])
def test_log_collisions_are_sums_of_squared_probabilities(monkeypatch, block_bytes, with_bias):
    monkeypatch.setattr(module, "block_bytes", lambda on_cpu: block_bytes)
    hidden, weight, bias, _ = inputs(torch.float64, scale=3.0)
    given = bias if with_bias else None
    logits = hidden @ weight.T + (bias if with_bias else 0)
    found = log_collisions(hidden.requires_grad_(), weight, given)
    torch.testing.assert_close(found, logits.softmax(1).square().sum(1).log(), rtol=1e-12, atol=1e-12)
    assert not found.requires_grad


def test_log_collisions_of_huge_and_of_bf16_logits():
    """One logit of 1e4 and others of 0: the distribution is certain. Five equal logits: ln(1/5)."""
    found = log_collisions(torch.tensor([[1e4], [0.0]]), torch.tensor([[1.0], [0.0], [0.0], [0.0], [0.0]]))
    assert found.tolist() == pytest.approx([0.0, -math.log(5)], abs=1e-6)
    hidden, weight, _, _ = inputs(torch.bfloat16)
    found = log_collisions(hidden, weight)
    exact = (hidden.float() @ weight.float().T).softmax(1).square().sum(1).log()
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, exact, rtol=0, atol=0.03)


@pytest.mark.parametrize("block_bytes", [2**25, 140, 28])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("scale", [1.0, 1e3])
def test_distributions_are_those_of_a_plain_softmax(monkeypatch, block_bytes, with_bias, scale):
    monkeypatch.setattr(module, "block_bytes", lambda on_cpu: block_bytes)
    hidden, weight, bias, targets = inputs(torch.float64, scale)
    targets[0] = (hidden[0] @ weight.T + bias * with_bias).argmax()
    given = bias if with_bias else None
    log_probs, entropies, hits = target_distributions(hidden, weight, targets, given)
    assert torch.equal(log_probs, target_log_probs(hidden, weight, targets, given))
    logits = hidden @ weight.T + bias * with_bias
    probabilities = logits.softmax(-1)
    expected = -(probabilities * probabilities.clamp_min(1e-300).log()).sum(-1)
    torch.testing.assert_close(entropies, expected, rtol=1e-9, atol=1e-9)
    assert hits.tolist() == (logits.argmax(-1) == targets).double().tolist()
    assert 1 <= hits.sum() < K
    for one, other in zip(logits_distributions(logits, targets), (entropies, hits), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("block_bytes", [2**25, 140])
def test_distributions_of_bf16_inputs_are_close_to_float32(monkeypatch, block_bytes, either_kernels):
    monkeypatch.setattr(module, "block_bytes", lambda on_cpu: block_bytes)
    hidden, weight, _, targets = inputs(torch.bfloat16)
    _, entropies, _ = target_distributions(hidden, weight, targets)
    probabilities = (hidden.float() @ weight.float().T).softmax(-1)
    torch.testing.assert_close(entropies, torch.special.entr(probabilities).sum(-1), rtol=0.02, atol=0.02)


def test_distributions_do_not_change_gradients():
    hidden, weight, bias, targets = inputs()
    plainly = value_and_gradients(target_log_probs, hidden, weight, targets, bias)
    beside = value_and_gradients(lambda *given: target_distributions(*given)[0], hidden, weight, targets, bias)
    assert torch.equal(plainly[0], beside[0])
    assert all(torch.equal(one, other) for one, other in zip(plainly[1], beside[1], strict=True))
    _, entropies, hits = target_distributions(hidden.requires_grad_(), weight, targets, bias)
    assert not entropies.requires_grad
    assert not hits.requires_grad
