"""Log-probs of target tokens, in float32 whatever comes in.

    logits (B, T, V), labels (B, T)        -> logits_to_log_probs -> (B, T)     MiniMind's form, for comparison
    hidden (K, H), weight (V, H), ids (K,) -> target_log_probs    -> (K,)       the training path

The training path never holds (K, V) log-probs: it walks over blocks of the vocabulary, and its backward recomputes
each block instead of keeping it; but for the forward's last, with which backward begins.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from minimind import native

# Size of the largest block of logits, 32 MiB.
_BLOCK_BYTES = 2**25
# Rows of a block begin where vectors of the kernels do.
_ALIGNED = 64


def logits_to_log_probs(logits: Tensor, labels: Tensor) -> Tensor:
    """Log-prob of each label: logits (B, T, V) of any floating dtype, labels (B, T) int64 -> (B, T) float32."""
    return logits.float().log_softmax(dim=2).gather(2, labels.unsqueeze(2)).squeeze(2)


def target_log_probs(hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None = None) -> Tensor:
    """Log-prob of one target token per hidden state, through the output head.

    Args:
        hidden: (K, H), any floating dtype.
        weight: (V, H), the head's weight, the same dtype.
        targets: (K,) int64 token ids.
        bias: (V,) or None.

    Returns: (K,) float32 (float64 for float64 input): `log_softmax(hidden @ weight.T + bias)[k, targets[k]]`.
    """
    return _TargetLogProbs.apply(hidden, weight, targets, bias, torch.is_grad_enabled())


def _blocks(targets: Tensor, weight: Tensor, wide: torch.dtype) -> list[tuple[int, int]]:
    """Tokens from and to, of each block; all but the first are as large as may be."""
    size = (weight.dtype if native.applies(weight) else wide).itemsize
    width = max(1, _BLOCK_BYTES // (size * max(1, len(targets))))
    width -= width % _ALIGNED if width > _ALIGNED else 0
    return [(max(0, end - width), end) for end in range(len(weight), 0, -width)][::-1]


def _product(hidden: Tensor, weight: Tensor, bias: Tensor | None, start: int, end: int) -> Tensor:
    """One block of logits (K, end - start), in the dtype of the weights."""
    block = native.matmul(hidden, weight[start:end].T)
    return block if bias is None else block.add_(bias[start:end])


def _log_sum(
    hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None, wide: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Each hidden state's log-sum-exp over the vocabulary and its target's logit, (K,) each; the last block."""
    at_target = hidden.new_zeros(len(targets), dtype=wide)
    log_sum, total = torch.full_like(at_target, -torch.inf), torch.zeros_like(at_target)
    fused = native.applies(hidden, weight)
    for start, end in _blocks(targets, weight, wide):
        block = hidden  # the one before is let go first
        block = _product(hidden, weight, bias, start, end)
        if fused:
            native.log_sum_block_(block, targets, start, log_sum, total, at_target)
            continue
        logits = block.to(wide)
        log_sum = torch.logaddexp(log_sum, logits.logsumexp(1))
        here, column = _columns(targets, start, end - start)
        at_target = torch.where(here, logits.gather(1, column)[:, 0], at_target)
    return log_sum + total.log() if fused else log_sum, at_target, block


def _columns(targets: Tensor, start: int, width: int) -> tuple[Tensor, Tensor]:
    """Whether each target lies in a block (K,), and its column there, or any if it does not (K, 1).

    A list of those that do would be as long as the values say: a GPU would be waited for.
    """
    return (targets >= start) & (targets < start + width), (targets - start).clamp(0, width - 1)[:, None]


def _grad_logits(logits: Tensor, targets: Tensor, start: int, log_sum: Tensor, grad: Tensor) -> Tensor:
    """The gradient of one block's logits (K, width), in their dtype; they may be overwritten."""
    if native.applies(logits):
        return native.log_sum_block_backward_(logits, targets, start, log_sum, grad)
    wide = logits.to(log_sum.dtype).sub_(log_sum[:, None]).exp_().mul_(-grad[:, None])
    here, column = _columns(targets, start, logits.shape[1])
    return wide.scatter_add_(1, column, torch.where(here, grad, 0)[:, None]).to(logits.dtype)


class _TargetLogProbs(torch.autograd.Function):
    """d log p(y) / d logits = onehot(y) - softmax: backward needs one log-sum-exp a target from the forward."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None, grad_enabled: bool
    ) -> Tensor:
        wide = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        log_sum, at_target, block = _log_sum(hidden, weight, targets, bias, wide)
        ctx.save_for_backward(hidden, weight, targets, bias, log_sum)
        # Its place would be taken again as soon as backward begins. A second backward finds it used up.
        ctx.last_block = block if grad_enabled and any(ctx.needs_input_grad) else None
        return at_target - log_sum

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, Tensor | None, None]:
        hidden, weight, targets, bias, log_sum = ctx.saved_tensors
        logits, ctx.last_block = ctx.last_block, None
        grad = grads[0].to(log_sum.dtype).contiguous()
        needs_hidden, needs_weight, _, needs_bias, _ = ctx.needs_input_grad
        grad_hidden = torch.zeros_like(hidden, dtype=log_sum.dtype) if needs_hidden else None
        grad_weight = torch.empty_like(weight) if needs_weight else None
        grad_bias = torch.empty_like(bias) if needs_bias and bias is not None else None
        for start, end in reversed(_blocks(targets, weight, log_sum.dtype)):
            logits = _product(hidden, weight, bias, start, end) if logits is None else logits
            grad_logits, logits = _grad_logits(logits, targets, start, log_sum, grad), None
            if grad_hidden is not None:
                grad_hidden += native.matmul(grad_logits, weight[start:end])
            if grad_weight is not None:
                # Each row of the head is written once, by one product over all targets: nothing is accumulated in bf16.
                native.matmul(grad_logits.T, hidden, out=grad_weight[start:end])
            if grad_bias is not None:
                grad_bias[start:end] = grad_logits.sum(0, dtype=log_sum.dtype)
        return (None if grad_hidden is None else grad_hidden.to(hidden.dtype)), grad_weight, None, grad_bias, None
