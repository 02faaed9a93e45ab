"""The kernels as functions of tensors, with gradients.

    applies(x)? -> rms_norm, rotate, packed_attention, swiglu, target log-probs

All tensors are bfloat16 on a CPU where nothing else is said. Each function's oracle is the plain torch expression that
its caller uses everywhere else.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from minimind.native.library import library


def applies(*tensors: Tensor) -> bool:
    """Whether the kernels take these tensors. Under torch.compile they do not: the compiler fuses as well."""
    # Asked a thousand times a step, while the other cores wait.
    for tensor in tensors:
        if tensor.dtype is not torch.bfloat16 or not tensor.is_cpu:
            return False
    return not torch.compiler.is_compiling() and library() is not None


def call(name: str, *arguments: Tensor | ctypes.Array[Any] | float | None) -> Any:
    """Run a kernel; of a tensor it gets the address."""
    loaded: ctypes.CDLL | None = library()
    assert loaded is not None
    return getattr(loaded, name)(*[a.data_ptr() if isinstance(a, Tensor) else a for a in arguments])


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Root-mean-square normalisation over the last dimension: x (..., size), weight (size,) -> (..., size)."""
    return _RMSNorm.apply(x, weight, eps)[0]


def rms_norm_beside(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """`rms_norm(x, weight, eps)`, and x again for what it goes into beside: its gradient is summed in float32 and
    rounded once."""
    return _RMSNorm.apply(x, weight, eps)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn x (T, heads, D) by cos and sin (T, D/2) float32, and put the heads first: (heads, T, D)."""
    return _Rotate.apply(x, cos, sin)


def norm_rotate(x: Tensor, weight: Tensor, eps: float, cos: Tensor, sin: Tensor) -> Tensor:
    """`rotate(rms_norm(x, weight, eps), cos, sin)` for heads of weight's size (D,), rounded once."""
    return _NormRotate.apply(x, weight, eps, cos, sin)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up, of any shape."""
    return _SwiGLU.apply(gate, up)


def packed_attention(
    query: Tensor, key: Tensor, value: Tensor, segments: Sequence[tuple[int, int, int]], scaling: float
) -> Tensor:
    """Exact attention over a pack, lower-right causal within each row of each pair; the scores stay in the caches.

    Args:
        query: (heads, T, D) with any strides of heads and tokens.
        key, value: (kv heads, T, D) likewise; each head serves heads / kv heads heads.
        segments: per pair the lengths of prefix, rest of chosen, rest of rejected, T in all.
        scaling: factor of the scores, above 0.

    Returns: (T, heads, D).
    """
    return _PackedAttention.apply(query, key, value, segments, scaling)


def widen(x: Tensor, out: Tensor) -> float:
    """`out.copy_(x)`, out float32, of one shape and contiguous; gives the sum of x's squares, summed in float64."""
    assert x.shape == out.shape
    assert x.is_contiguous()
    assert out.is_contiguous()
    return float(call("widen_all", x, out, x.numel()))


def log_sum_block_(
    logits: Tensor, targets: Tensor, start: int, largest: Tensor, total: Tensor, at_target: Tensor
) -> None:
    """Carry a log-sum-exp over the vocabulary on by one block of logits (K, width) that starts at token `start`.

    largest, total, at_target: (K,) float32, the largest logit, the sum of exponentials above it, the target's logit.
    """
    call("log_sum_block", logits, targets, largest, total, at_target, len(logits), logits.shape[1], start)


def log_sum_block_backward_(logits: Tensor, targets: Tensor, start: int, log_sum: Tensor, grad: Tensor) -> Tensor:
    """In place: logits (K, width) become the gradient of their log-probs, grad and log_sum (K,) float32."""
    call("log_sum_block_backward", logits, targets, log_sum, grad, len(logits), logits.shape[1], start)
    return logits


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        assert x.shape[-1:] == weight.shape
        lying = x.contiguous()
        y, rows = torch.empty_like(lying), x.numel() // len(weight)
        scale = x.new_empty(rows, dtype=torch.float32)
        call("rms_norm_forward", lying, weight, y, scale, rows, len(weight), eps)
        ctx.save_for_backward(lying, weight, scale)
        ctx.set_materialize_grads(False)
        return y, x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight, scale = ctx.saved_tensors
        grad, beside = (None if grad is None else grad.contiguous() for grad in grads)
        if grad is None:
            return beside, None, None
        grad_x = torch.empty_like(x)
        threads = torch.get_num_threads()
        partial = weight.new_zeros(threads, len(weight), dtype=torch.float32)
        call("rms_norm_backward", grad, beside, x, weight, scale, grad_x, partial, threads, len(scale), len(weight))
        return grad_x, partial.sum(0).to(weight.dtype), None


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        tokens, heads, size = x.shape
        assert cos.shape == sin.shape == (tokens, size // 2)
        ctx.save_for_backward(cos, sin)
        y = x.new_empty(heads, tokens, size)
        call("rotate", x.contiguous(), cos, sin, y, tokens, heads, size, 1, 1.0)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        heads, tokens, size = grads[0].shape
        grad_x = grads[0].new_empty(tokens, heads, size)
        call("rotate", grads[0].contiguous(), cos, sin, grad_x, tokens, heads, size, 0, -1.0)
        return grad_x, None, None


class _NormRotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, cos: Tensor, sin: Tensor) -> Tensor:
        tokens, heads, size = x.shape
        assert weight.shape == (size,)
        assert cos.shape == sin.shape == (tokens, size // 2)
        x = x.contiguous()
        y, scale = x.new_empty(heads, tokens, size), x.new_empty(tokens, heads, dtype=torch.float32)
        call("norm_rotate_forward", x, weight, cos, sin, y, scale, tokens, heads, size, eps)
        ctx.save_for_backward(x, weight, cos, sin, scale)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, cos, sin, scale = ctx.saved_tensors
        grad_x, threads = torch.empty_like(x), torch.get_num_threads()
        partial = weight.new_zeros(threads, len(weight), dtype=torch.float32)
        grad = grads[0].contiguous()
        call("norm_rotate_backward", grad, x, weight, cos, sin, scale, grad_x, partial, threads, *x.shape)
        return grad_x, partial.sum(0).to(weight.dtype), None, None, None


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        assert gate.shape == up.shape
        gate, up = gate.contiguous(), up.contiguous()
        ctx.save_for_backward(gate, up)
        y = torch.empty_like(gate)
        call("swiglu_forward", gate, up, y, gate.numel())
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        grad_gate, grad_up = torch.empty_like(gate), torch.empty_like(up)
        call("swiglu_backward", grads[0].contiguous(), gate, up, grad_gate, grad_up, None, gate.numel())
        return grad_gate, grad_up


class _PackedAttention(torch.autograd.Function):
    """Keeps inputs and output; the probabilities are made again in backward."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, segments: Sequence[tuple[int, int, int]], scaling: float
    ) -> Tensor:
        heads, tokens, size = query.shape
        assert key.shape == value.shape == (len(key), tokens, size)
        assert size % 2 == heads % len(key) == 0
        assert scaling > 0, "hidden scores are -infinity before they are scaled"
        assert sum(map(sum, segments)) == tokens
        query, key, value = (x if x.stride(-1) == 1 else x.contiguous() for x in (query, key, value))
        ctx.lengths, ctx.scaling = torch.tensor(segments, dtype=torch.int64, device="cpu"), scaling
        out, sums = query.new_empty(tokens, heads, size), query.new_empty(heads, tokens, 2, dtype=torch.float32)
        call("packed_attention", *_PackedAttention.arguments(ctx, query, key, value), out, sums)
        ctx.save_for_backward(query, key, value, out, sums)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        query, key, value, out, sums = ctx.saved_tensors
        # They lie as their tensors do, unless those overlap themselves.
        like = (torch.empty_like(x) for x in (query, key, value))
        made = [x if x.stride(-1) == 1 else x.contiguous() for x in like]
        arguments = _PackedAttention.arguments(ctx, query, key, value, *made)
        call("packed_attention_backward", *arguments, out, sums, grads[0].contiguous(), *made)
        return made[0], made[1], made[2], None, None

    @staticmethod
    def arguments(ctx: Any, query: Tensor, key: Tensor, value: Tensor, *more: Tensor) -> tuple[Tensor | float, ...]:
        """What both kernels take first; strides also of `more`."""
        steps = [x.stride()[:2] for x in (query, key, value, *more)]
        strides = torch.tensor(steps, dtype=torch.int64, device="cpu")
        sizes = len(ctx.lengths), len(query), *key.shape
        return query, key, value, strides, ctx.lengths, *sizes, ctx.scaling
