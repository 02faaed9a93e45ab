"""Log-probs of target tokens, computed in float32 from logits of any dtype.

    logits (B, T, V), labels (B, T)        -> logits_to_log_probs -> (B, T)     MiniMind's formula, for comparison
    hidden (K, H), weight (V, H), ids (K,) -> target_log_probs    -> (K,)       used in training

Training never holds (K, V) logits: the vocabulary is processed in blocks. Backward recomputes each block instead of
saving it, except for the block that forward computed last, with which backward begins.

Shapes: B batch, T tokens, K targets, V vocabulary, H hidden.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from minimind.native import ops

# Widths are multiples of this, so that each row of a block is a whole number of the kernels' vectors.
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
    return _TargetLogProbs.apply(hidden, weight, targets, bias, torch.is_grad_enabled(), False)[0]


def target_distributions(
    hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """`target_log_probs`, and what the same pass over the logits tells about the distributions, without gradient.

    Returns: (K,) each: the log-probs, bit for bit as without the rest; the entropy in nats of
        `softmax(hidden @ weight.T + bias)`; 1 where no token has a larger logit than the target, else 0.
    """
    return _TargetLogProbs.apply(hidden, weight, targets, bias, torch.is_grad_enabled(), True)


def logits_distributions(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Entropies and hits as of `target_distributions`, (K,) each, from logits (K, V) float32 without gradient."""
    # `entr` is -p log p, and 0 for p = 0.
    entropies = torch.special.entr(logits.softmax(-1)).sum(-1)
    at_target = logits.gather(1, targets[:, None])[:, 0]
    return entropies, (at_target >= logits.amax(-1)).to(logits.dtype)


@torch.no_grad()
def log_collisions(hidden: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Log of the probability that two tokens drawn from each hidden state's distribution are the same.

    Args:
        hidden, weight, bias: as in `target_log_probs`.

    Returns: (K,) float32 (float64 for float64 input), without gradient: `log sum_v p_v^2`.
    """
    wide = torch.float64 if hidden.dtype == torch.float64 else torch.float32
    # Logarithms of the sums of exp(z) and of exp(2 z) over the blocks so far.
    # log sum p^2 = log sum exp(2z) - 2 log sum exp(z): two running sums are enough, and no (K, V) tensor is needed.
    once, twice = (hidden.new_full((len(hidden),), -torch.inf, dtype=wide) for _ in range(2))
    for start, end in _blocks(hidden, weight, wide):
        logits = _block_logits(hidden, weight, bias, start, end).to(wide)
        # In logarithms: exp of a logit above 88 is infinite in float32.
        once = torch.logaddexp(once, logits.logsumexp(1))
        twice = torch.logaddexp(twice, (2 * logits).logsumexp(1))
    return twice - 2 * once


def block_bytes(on_cpu: bool) -> int:
    """Upper bound of one block of logits: 32 MiB on a CPU, 256 MiB on a GPU.

    A block is about twenty kernels. On a GPU the launches of smaller ones would take longer than their computation: a
    vocabulary of 151,936 with 4096 targets has 10 blocks instead of 75.
    """
    return 2**25 if on_cpu else 2**28


def _blocks(targets: Tensor, weight: Tensor, wide: torch.dtype) -> list[tuple[int, int]]:
    """First token and end of each block. All blocks but the first have the largest width that fits `block_bytes`."""
    widest = ops.log_sum_dtype(weight, wide)
    values = max(1, len(targets))  # of one token of a block
    if widest != weight.dtype:
        # A block and its gradient then exist in both dtypes, and the products may cast their part of the weight.
        values += len(targets) + weight.shape[1]
    width = max(1, block_bytes(weight.is_cpu) // (widest.itemsize * values))
    width -= width % _ALIGNED if width > _ALIGNED else 0
    # The first block takes the remainder: the last one, which backward reuses, is then as large as possible.
    return [(max(0, end - width), end) for end in range(len(weight), 0, -width)][::-1]


def _block_logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, start: int, end: int) -> Tensor:
    """The logits of tokens start to end, (K, end - start), in the dtype of the weights."""
    logits = ops.matmul(hidden, weight[start:end].T)
    return logits if bias is None else logits.add_(bias[start:end])


def _log_sum(
    hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None, wide: torch.dtype, distribution: bool
) -> tuple[ops.LogSum, Tensor]:
    """The sum over the logits of the whole vocabulary, and the logits of the last block."""
    total = ops.log_sum(hidden, weight, targets, wide, distribution)
    for start, end in _blocks(targets, weight, wide):
        logits = hidden  # drops the previous block, so that only one exists at a time
        logits = _block_logits(hidden, weight, bias, start, end)
        total.add(logits, start)
    return total, logits


class _TargetLogProbs(torch.autograd.Function):
    """d log p(y) / d logits = onehot(y) - softmax, for which backward needs each target's log-sum-exp from forward."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        bias: Tensor | None,
        grad_enabled: bool,
        distribution: bool,
    ) -> tuple[Tensor, ...]:
        wide = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        total, last_logits = _log_sum(hidden, weight, targets, bias, wide, distribution)
        log_sum, at_target = total.result()
        ctx.save_for_backward(hidden, weight, targets, bias, log_sum)
        # Keeping it needs no more memory than backward, which would allocate it again at once. Backward overwrites it
        # and drops it, so that a second backward recomputes it.
        ctx.last_logits = last_logits if grad_enabled and any(ctx.needs_input_grad) else None
        if not distribution:
            return (at_target - log_sum,)
        extra = total.distribution()
        # Metrics only: autograd would otherwise ask backward for their gradients.
        ctx.mark_non_differentiable(*extra)
        return at_target - log_sum, *extra

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, Tensor | None, None, None]:
        hidden, weight, targets, bias, log_sum = ctx.saved_tensors
        logits, ctx.last_logits = ctx.last_logits, None
        # The gradients of entropy and hits come too, as zeros; only the log-probs have one.
        grad = grads[0].to(log_sum.dtype).contiguous()
        needs_hidden, needs_weight, _, needs_bias, *_ = ctx.needs_input_grad
        # Summed over blocks, so in float32; in bfloat16 each addition would round.
        grad_hidden = torch.zeros_like(hidden, dtype=log_sum.dtype) if needs_hidden else None
        grad_weight = torch.empty_like(weight) if needs_weight else None
        grad_bias = torch.empty_like(bias) if needs_bias and bias is not None else None
        for start, end in reversed(_blocks(targets, weight, log_sum.dtype)):
            logits = _block_logits(hidden, weight, bias, start, end) if logits is None else logits
            grad_logits, logits = ops.log_sum_gradient(logits, targets, start, log_sum, grad), None
            if grad_hidden is not None:
                grad_hidden += ops.matmul(grad_logits, weight[start:end])
            if grad_weight is not None:
                # Each row of the gradient is written once, by one product over all targets: no sum in bfloat16.
                ops.matmul(grad_logits.T, hidden, out=grad_weight[start:end])
            if grad_bias is not None:
                grad_bias[start:end] = grad_logits.sum(0, dtype=log_sum.dtype)
        return (None if grad_hidden is None else grad_hidden.to(hidden.dtype)), grad_weight, None, grad_bias, None, None
