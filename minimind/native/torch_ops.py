"""Torch's way of each operation in ops.py: plain expressions for every dtype and device, which autograd differentiates.

They are the oracle that the kernels are tested against, and what runs wherever no kernel applies: on GPUs, in float32,
under torch.compile, in processes that have not called `prepare`, with `--kernels torch`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

# (prefix length, rejected length, device) -> mask of the rejected half, see `rejected_mask`
MaskMaker = Callable[[int, int, torch.device], Tensor]


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight, in float32 inside."""
    return F.rms_norm(x, weight.shape, weight, eps)


def rms_norm_with_residual(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The residual is x itself: autograd sums its two gradients."""
    return rms_norm(x, weight, eps), x


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Channels i and i + D/2 are the coordinates of a point that is rotated by the angle of its position."""
    first, second = x.transpose(1, 2).chunk(2, dim=-1)
    cos, sin = cos[:, None], sin[:, None]
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)


def norm_rotate(x: Tensor, weight: Tensor, eps: float, cos: Tensor, sin: Tensor) -> Tensor:
    """Rounds to x's dtype between the two steps."""
    return rotate(rms_norm(x, weight, eps), cos, sin)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """Rounds to the gate's dtype between the two steps."""
    return F.silu(gate) * up


def matmul(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """torch's own."""
    return torch.mm(a, b) if out is None else torch.mm(a, b, out=out)


def linear(x: Tensor, weight: Tensor, residual: Tensor | None = None) -> Tensor:
    """torch's own, and a sum."""
    out = F.linear(x, weight)
    return out if residual is None else residual + out


def linears(x: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
    """torch's own, one after the other."""
    return tuple(F.linear(x, weight) for weight in weights)


def feed_forward(x: Tensor, gate: Tensor, up: Tensor, down: Tensor, residual: Tensor) -> Tensor:
    """Three linear maps and an activation."""
    return linear(swiglu(linear(x, gate), linear(x, up)), down, residual)


def rejected_mask(prefix: int, rejected: int, device: torch.device) -> Tensor:
    """Lower-right causal mask (rejected, prefix + rejected), True where attention is allowed."""
    return torch.ones(rejected, prefix + rejected, dtype=torch.bool, device=device).tril(prefix)


def packed_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    segments: Sequence[tuple[int, int, int]],
    scaling: float,
    *,
    mask: MaskMaker = rejected_mask,
    dropout: float = 0.0,
) -> Tensor:
    """Two calls of torch's SDPA for each pair: prefix and chosen, then the rejected half.

    `mask` lets a caller reuse masks from layer to layer; only this way knows dropout.
    """
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    outputs, start = [], 0
    for prefix, chosen, rejected in segments:
        fork = start + prefix
        middle = fork + chosen
        end = middle + rejected
        if middle > start:
            own = [x[:, :, start:middle] for x in (query, key, value)]
            outputs.append(
                F.scaled_dot_product_attention(own[0], own[1], own[2], dropout_p=dropout, scale=scaling, is_causal=True)
            )
        if end > middle:
            # The rejected half sees the shared prefix and itself, but not the chosen half between them.
            seen_key, seen_value = (torch.cat((x[:, :, start:fork], x[:, :, middle:end]), 2) for x in (key, value))
            outputs.append(
                F.scaled_dot_product_attention(
                    query[:, :, middle:end],
                    seen_key,
                    seen_value,
                    attn_mask=mask(prefix, rejected, query.device),
                    dropout_p=dropout,
                    scale=scaling,
                )
            )
        start = end
    return torch.cat(outputs, dim=2).transpose(1, 2)


def cast_and_sum_squares(x: Tensor, out: Tensor) -> float | None:
    """Casts only: on a GPU a number on the host would have to be waited for."""
    out.copy_(x)
    return None


class LogSum:
    """Log-sum-exp of logits that arrive in blocks of the vocabulary, and the logit of each target.

    With `distribution` also the mean of log p under the softmax so far, and the largest logit.
    """

    def __init__(self, targets: Tensor, dtype: torch.dtype, distribution: bool = False) -> None:
        self._targets = targets
        self._at_target = torch.zeros(len(targets), dtype=dtype, device=targets.device)
        self._log_sum = torch.full_like(self._at_target, -torch.inf)
        self._mean = torch.zeros_like(self._at_target) if distribution else None
        self._largest = torch.full_like(self._at_target, -torch.inf)

    def add(self, logits: Tensor, start: int) -> None:
        inside, column = _columns(self._targets, start, logits.shape[1])
        # A copy, because it is overwritten, and backward may begin with these logits.
        wide = logits.to(self._log_sum.dtype, copy=True)
        self._at_target = torch.where(inside, wide.gather(1, column)[:, 0], self._at_target)
        # The bits of torch.logsumexp without its second large tensor. Clamped, because -inf minus -inf is NaN.
        largest = wide.amax(1, keepdim=True).clamp_min(torch.finfo(wide.dtype).min)
        powers = wide.sub_(largest).exp_()
        block = powers.sum(1).log_().add_(largest[:, 0])
        before, self._log_sum = self._log_sum, torch.logaddexp(self._log_sum, block)
        if self._mean is not None:
            # log p of earlier tokens falls by as much as the sum grows. Nothing is known before the first block.
            fallen = (before - self._log_sum).clamp_min(torch.finfo(wide.dtype).min)
            own = _product_sums(powers, logits, largest) + powers.sum(1) * (largest[:, 0] - self._log_sum)
            self._mean = (self._mean + fallen) * fallen.exp() + own * (largest[:, 0] - self._log_sum).exp()
            self._largest = torch.maximum(self._largest, largest[:, 0])

    def result(self) -> tuple[Tensor, Tensor]:
        return self._log_sum, self._at_target

    def distribution(self) -> tuple[Tensor, Tensor]:
        assert self._mean is not None
        return -self._mean, (self._at_target >= self._largest).to(self._mean.dtype)


def _product_sums(powers: Tensor, logits: Tensor, largest: Tensor) -> Tensor:
    """Sums over tokens of e^x x, x = logits - largest: powers and logits (K, width), largest (K, 1) -> (K,).

    In sixteen parts, so that it needs little memory.
    """
    rows = max(1, len(logits) // 16)
    parts = zip(powers.split(rows), logits.split(rows), largest.split(rows), strict=True)
    # Bounded, because 0 times the minus infinity of an excluded token would be NaN.
    return torch.cat([(power * (other - top).clamp_min_(-200.0)).sum(1) for power, other, top in parts])


def log_sum_gradient(logits: Tensor, targets: Tensor, start: int, log_sum: Tensor, grad: Tensor) -> Tensor:
    """In `log_sum`'s dtype, rounded to the logits' at the end."""
    # softmax = exp(logit - log sum): no pass over the vocabulary for a maximum is left to do.
    wide = logits.to(log_sum.dtype).sub_(log_sum[:, None]).exp_().mul_(-grad[:, None])
    # A target in another block adds 0 to some column, which changes nothing.
    inside, column = _columns(targets, start, logits.shape[1])
    return wide.scatter_add_(1, column, torch.where(inside, grad, 0)[:, None]).to(logits.dtype)


def _columns(targets: Tensor, start: int, width: int) -> tuple[Tensor, Tensor]:
    """Whether each target lies in a block (K,), and its column there, or any column if it does not (K, 1).

    Selecting the targets inside the block would be shorter, but the number of results would depend on the values, and
    the host would have to wait for a GPU to know it.
    """
    return (targets >= start) & (targets < start + width), (targets - start).clamp(0, width - 1)[:, None]
