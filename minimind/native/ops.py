"""The model's heavy operations, each with one implementation per kind of processor.

    caller -> ops.rms_norm(x, weight, eps) -> TABLE["rms_norm"] -> torch | cpu | gpu

Callers never ask what runs: the functions here choose at each call, by dtype, device, shape and the process's
selection (selection.py). To add an implementation, put it into the table and into the tests that compare it with
torch's way.

Shapes: B batch, T tokens, D head dimension, H hidden, K targets. CPU kernels take bfloat16 only.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from minimind.native import functions, products, torch_ops
from minimind.native.selection import gpu_kernels_take, kernels_take


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Op:
    """The implementations of one operation; all take the same arguments and give the same result but for rounding.

    Attributes:
        torch: plain torch expressions, for any tensors; the oracle of the others.
        cpu: a compiled kernel, with its gradient.
        gpu: a GPU's kernel; None: torch's way is taken there.
    """

    torch: Callable[..., Any]
    cpu: Callable[..., Any]
    gpu: Callable[..., Any] | None = None


class LogSum(Protocol):
    """Log-sum-exp of logits that arrive in blocks of the vocabulary, and the logit of each target."""

    def add(self, logits: Tensor, start: int) -> None:
        """Add the logits (K, width) of tokens start to start + width."""

    def result(self) -> tuple[Tensor, Tensor]:
        """Each target's log-sum-exp over all blocks, and its logit: (K,) each."""

    def distribution(self) -> tuple[Tensor, Tensor]:
        """Entropy of softmax(logits), in nats, and 1 where no logit is larger than the target's, else 0: (K,) each.

        Only of a sum that was made for it.
        """


TABLE: Mapping[str, Op] = {
    "rms_norm": Op(torch=torch_ops.rms_norm, cpu=functions.rms_norm),
    "rms_norm_with_residual": Op(torch=torch_ops.rms_norm_with_residual, cpu=functions.rms_norm_with_residual),
    "rotate": Op(torch=torch_ops.rotate, cpu=functions.rotate),
    "norm_rotate": Op(torch=torch_ops.norm_rotate, cpu=functions.norm_rotate),
    "swiglu": Op(torch=torch_ops.swiglu, cpu=functions.swiglu),
    "packed_attention": Op(torch=torch_ops.packed_attention, cpu=functions.packed_attention),
    "matmul": Op(torch=torch_ops.matmul, cpu=products.matmul),
    "linear": Op(torch=torch_ops.linear, cpu=products.linear),
    "linears": Op(torch=torch_ops.linears, cpu=products.linears),
    "feed_forward": Op(torch=torch_ops.feed_forward, cpu=products.feed_forward),
    "cast_and_sum_squares": Op(torch=torch_ops.cast_and_sum_squares, cpu=functions.cast_and_sum_squares),
    "log_sum": Op(torch=torch_ops.LogSum, cpu=functions.LogSum),
    "log_sum_gradient": Op(torch=torch_ops.log_sum_gradient, cpu=functions.log_sum_gradient),
}


def implementation(name: str, *tensors: Tensor, cpu_fits: bool = True) -> Callable[..., Any]:
    """What computes an operation of these tensors; `cpu_fits`: whether the CPU's kernel knows their shapes."""
    op = TABLE[name]
    if cpu_fits and kernels_take(*tensors):
        return op.cpu
    if op.gpu is not None and gpu_kernels_take(*tensors):
        return op.gpu
    return op.torch


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Root-mean-square normalisation over the last dimension: x (..., size), weight (size,) -> (..., size)."""
    return implementation("rms_norm", x, weight)(x, weight, eps)


def rms_norm_with_residual(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """`rms_norm(x, weight, eps)`, and x for the residual connection.

    The kernel sums the two gradients of x in float32 and rounds once, if x is used through these two results only.
    """
    return implementation("rms_norm_with_residual", x, weight)(x, weight, eps)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding (Su et al., 2021), with the heads moved first: x (B, T, heads, D) -> (B, heads, T, D).

    Channel i is paired with channel i + D/2, as in Llama. cos and sin are (B, T, D/2) float32; computed in float32, the
    result has x's dtype.
    """
    return implementation("rotate", x, cpu_fits=len(x) == 1)(x, cos, sin)


def norm_rotate(x: Tensor, weight: Tensor, eps: float, cos: Tensor, sin: Tensor) -> Tensor:
    """`rotate(rms_norm(x, weight, eps), cos, sin)` for heads of weight's size (D,); the kernel rounds once."""
    way = implementation("norm_rotate", x, weight, cpu_fits=len(x) == 1)
    if way is TABLE["norm_rotate"].torch:
        return rotate(rms_norm(x, weight, eps), cos, sin)  # either of the two may have a kernel for these tensors
    return way(x, weight, eps, cos, sin)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up (Shazeer, 2020), of any shape."""
    return implementation("swiglu", gate, up)(gate, up)


def packed_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    segments: Sequence[tuple[int, int, int]],
    scaling: float,
    mask: torch_ops.MaskMaker = torch_ops.rejected_mask,
) -> Tensor:
    """Exact attention over a pack of preference pairs, causal within each row of each pair.

    Args:
        query: (1, heads, T, D).
        key, value: (1, kv heads, T, D); each of their heads serves heads / kv heads heads of the query.
        segments: per pair the lengths of prefix, rest of chosen, rest of rejected; their sum is T.
        scaling: factor of the scores, above 0.
        mask: makes or reuses the mask of torch's way; kernels need none.

    Returns: (1, T, heads, D).
    """
    # The kernel reads pairs of channels, and keys and values of one size (multi-head latent attention has two).
    fits = key.shape == value.shape and key.shape[-1] % 2 == 0
    way = implementation("packed_attention", query, key, value, cpu_fits=fits)
    if way is TABLE["packed_attention"].torch:
        return way(query, key, value, segments, scaling, mask=mask)
    return way(query, key, value, segments, scaling)


def matmul(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """`torch.mm(a, b, out=out)` without a gradient: a (rows, depth), b (depth, columns), either may be transposed."""
    return implementation("matmul", a, b)(a, b, out)


def linear(x: Tensor, weight: Tensor, residual: Tensor | None = None) -> Tensor:
    """`F.linear(x, weight) + residual`: x (..., in), weight (out, in), residual (..., out).

    The sum is rounded twice, as in two steps: a model whose layers are called one by one gives the same bits.
    """
    tensors = (x, weight) if residual is None else (x, weight, residual)
    return implementation("linear", *tensors)(x, weight, residual)


def linears(x: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
    """`linear(x, weight)` for each weight. The kernel sums x's gradients in float32 and rounds once."""
    return implementation("linears", x, *weights)(x, *weights)


def feed_forward(x: Tensor, gate: Tensor, up: Tensor, down: Tensor, residual: Tensor) -> Tensor:
    """SwiGLU network: `linear(silu(linear(x, gate)) * linear(x, up), down, residual)`, x and residual (..., H)."""
    return implementation("feed_forward", x, gate, up, down, residual)(x, gate, up, down, residual)


def cast_and_sum_squares(x: Tensor, out: Tensor) -> float | None:
    """`out.copy_(x)`, out float32, of one shape; the sum of x's squares in float64 if it is known at no extra cost.

    The kernel sums while it casts. Torch's way gives None: the caller sums when it needs to.
    """
    return implementation("cast_and_sum_squares", x, cpu_fits=x.is_contiguous())(x, out)


def log_sum(hidden: Tensor, weight: Tensor, targets: Tensor, dtype: torch.dtype, distribution: bool = False) -> LogSum:
    """A log-sum-exp in `dtype`, without any logits yet, for targets (K,) int64; logits will be hidden times weight.

    `distribution`: also keep what `LogSum.distribution` needs; the log-sum-exp is the same, bit for bit.
    """
    return implementation("log_sum", hidden, weight)(targets, dtype, distribution)


def log_sum_dtype(weight: Tensor, dtype: torch.dtype) -> torch.dtype:
    """The widest dtype in which a block of logits exists while it is added to a `log_sum`.

    Kernels read the weight's dtype, torch's way casts the block to `dtype` first, and so do the products of a CPU
    without bfloat16 instructions.
    """
    return weight.dtype if kernels_take(weight) and not products.widens() else dtype


def log_sum_gradient(logits: Tensor, targets: Tensor, start: int, log_sum: Tensor, grad: Tensor) -> Tensor:
    """Gradient of a block of logits (K, width) that starts at token `start`, in their dtype; may overwrite them.

    log_sum (K,): log-sum-exp over all blocks; grad (K,): gradient of the log-probs. It is
    `grad * (onehot(target) - softmax)`.
    """
    return implementation("log_sum_gradient", logits)(logits, targets, start, log_sum, grad)
