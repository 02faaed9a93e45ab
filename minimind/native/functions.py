"""The kernels of kernels.cpp and attention.cpp as functions of tensors, with gradients.

    ops.py -> a function here -> autograd function -> `call`: addresses and sizes -> C++

All tensors are bfloat16 on a CPU unless a docstring says otherwise; ops.py checks that. Arguments and results are those
of ops.py's function of the same name. `once_differentiable`: the kernels have no second derivative, and torch must
raise instead of returning a wrong one.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from minimind.native.library import compiled_kernels


def call(name: str, *arguments: Tensor | ctypes.Array[Any] | float | None) -> Any:
    """Call an exported C++ function; a tensor is passed as the address of its first element, None as a null pointer."""
    loaded: ctypes.CDLL | None = compiled_kernels()
    assert loaded is not None
    return getattr(loaded, name)(*[a.data_ptr() if isinstance(a, Tensor) else a for a in arguments])


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Saves x, the weight and one factor per row."""
    return _RMSNorm.apply(x, weight, eps)[0]


def rms_norm_with_residual(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The gradients of both results are summed in float32 and rounded once."""
    return _RMSNorm.apply(x, weight, eps)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """For one sequence: x (1, T, heads, D), cos and sin (1, T, D/2)."""
    # `squeeze` and [None] are views in forward and backward; the gradient of x[0] would be a new tensor, filled with 0.
    return _Rotate.apply(x.squeeze(0), cos[0], sin[0])[None]


def norm_rotate(x: Tensor, weight: Tensor, eps: float, cos: Tensor, sin: Tensor) -> Tensor:
    """For one sequence: x (1, T, heads, D), cos and sin (1, T, D/2)."""
    return _NormRotate.apply(x.squeeze(0), weight, eps, cos[0], sin[0])[None]


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """Saves both inputs; the sigmoid is recomputed."""
    return _SwiGLU.apply(gate, up)


def packed_attention(
    query: Tensor, key: Tensor, value: Tensor, segments: Sequence[tuple[int, int, int]], scaling: float
) -> Tensor:
    """Any strides of heads and tokens; the scores never leave the cores' caches."""
    query, key, value = (x.squeeze(0) for x in (query, key, value))
    return _PackedAttention.apply(query, key, value, segments, scaling)[None]


def cast_and_sum_squares(x: Tensor, out: Tensor) -> float:
    """Both contiguous; out float32."""
    assert x.shape == out.shape
    assert x.is_contiguous()
    assert out.is_contiguous()
    return float(call("cast_and_sum_squares", x, out, x.numel()))


class LogSum:
    """Per target (K,) float32: the largest logit so far, the sum of exponentials relative to it, the target's logit.

    With `distribution` also the sum of each exponential times its logit, relative to the largest too.
    """

    def __init__(self, targets: Tensor, dtype: torch.dtype, distribution: bool = False) -> None:
        assert dtype == torch.float32
        self._targets = targets
        self._at_target = torch.zeros(len(targets), dtype=dtype, device=targets.device)
        # Below every logit, so that the first block sets it.
        self._largest, self._total = torch.full_like(self._at_target, -torch.inf), torch.zeros_like(self._at_target)
        self._products = torch.zeros_like(self._at_target) if distribution else None

    def add(self, logits: Tensor, start: int) -> None:
        assert logits.is_contiguous()
        sums = self._largest, self._total, self._at_target, self._products
        call("log_sum_block", logits, self._targets, *sums, len(logits), logits.shape[1], start)

    def result(self) -> tuple[Tensor, Tensor]:
        return self._largest + self._total.log(), self._at_target

    def distribution(self) -> tuple[Tensor, Tensor]:
        assert self._products is not None
        # Entropy = log sum - mean logit; both are relative to the largest logit, which cancels.
        return self._total.log() - self._products / self._total, (self._at_target >= self._largest).float()


def log_sum_gradient(logits: Tensor, targets: Tensor, start: int, log_sum: Tensor, grad: Tensor) -> Tensor:
    """In place; log_sum and grad float32 and contiguous."""
    call("log_sum_block_backward", logits, targets, log_sum, grad, len(logits), logits.shape[1], start)
    return logits


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        assert x.shape[-1:] == weight.shape
        # The kernel walks over rows; a copy is made only where x is a transposed view.
        rows_of_x = x.contiguous()
        y, rows = torch.empty_like(rows_of_x), x.numel() // len(weight)
        scale = x.new_empty(rows, dtype=torch.float32)
        call("rms_norm_forward", rows_of_x, weight, y, scale, rows, len(weight), eps)
        # One float32 factor a row instead of the normalised rows: backward needs no second (rows, H) tensor.
        ctx.save_for_backward(rows_of_x, weight, scale)
        # The gradient of a result that is not used then comes as None, and not as zeros.
        ctx.set_materialize_grads(False)
        return y, x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight, scale = ctx.saved_tensors
        grad, grad_residual = (None if grad is None else grad.contiguous() for grad in grads)
        # The normalised result was not used: what is left is the gradient of the residual.
        if grad is None:
            return grad_residual, None, None
        grad_x, threads = torch.empty_like(x), torch.get_num_threads()
        # One row per thread; float32, since bfloat16 would lose small terms of a sum over all tokens.
        partial = weight.new_zeros(threads, len(weight), dtype=torch.float32)
        sizes = threads, len(scale), len(weight)
        call("rms_norm_backward", grad, grad_residual, x, weight, scale, grad_x, partial, *sizes)
        return grad_x, partial.sum(0).to(weight.dtype), None


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        tokens, heads, size = x.shape
        assert cos.shape == sin.shape == (tokens, size // 2)
        ctx.save_for_backward(cos, sin)
        # Attention reads heads first; the kernel writes there, so that no transposed copy follows.
        y = x.new_empty(heads, tokens, size)
        call("rotate", x.contiguous(), cos, sin, y, tokens, heads, size, 1, 1.0)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        heads, tokens, size = grads[0].shape
        grad_x = grads[0].new_empty(tokens, heads, size)
        # A rotation is undone by the opposite angle, so backward is the same kernel with a sign of -1.
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
        # None in place of the product: here nobody needs it again, `feed_forward` does.
        grad_gate, grad_up = torch.empty_like(gate), torch.empty_like(up)
        call("swiglu_backward", grads[0].contiguous(), gate, up, grad_gate, grad_up, None, gate.numel())
        return grad_gate, grad_up


class _PackedAttention(torch.autograd.Function):
    """Saves inputs, output and two numbers per query; backward recomputes the probabilities."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, segments: Sequence[tuple[int, int, int]], scaling: float
    ) -> Tensor:
        heads, tokens, size = query.shape
        assert key.shape == value.shape == (len(key), tokens, size)
        assert size % 2 == heads % len(key) == 0
        assert scaling > 0, "the mask puts -infinity before scores are scaled"
        assert sum(map(sum, segments)) == tokens
        query, key, value = (x if x.stride(-1) == 1 else x.contiguous() for x in (query, key, value))
        ctx.lengths, ctx.scaling = torch.tensor(segments, dtype=torch.int64, device="cpu"), scaling
        # Per query its largest score and the base-2 logarithm of its sum of exponentials: with them backward makes each
        # probability again.
        out, sums = query.new_empty(tokens, heads, size), query.new_empty(heads, tokens, 2, dtype=torch.float32)
        call("packed_attention", *_PackedAttention.arguments(ctx, query, key, value), out, sums)
        ctx.save_for_backward(query, key, value, out, sums)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        query, key, value, out, sums = ctx.saved_tensors
        # `empty_like` keeps strides, so that autograd need not copy, except those of tensors that overlap themselves.
        like = (torch.empty_like(x) for x in (query, key, value))
        results = [x if x.stride(-1) == 1 else x.contiguous() for x in like]
        arguments = _PackedAttention.arguments(ctx, query, key, value, *results)
        call("packed_attention_backward", *arguments, out, sums, grads[0].contiguous(), *results)
        return results[0], results[1], results[2], None, None

    @staticmethod
    def arguments(ctx: Any, query: Tensor, key: Tensor, value: Tensor, *results: Tensor) -> tuple[Tensor | float, ...]:
        """The first arguments of both kernels; their strides include those of backward's results."""
        pairs = [x.stride()[:2] for x in (query, key, value, *results)]
        # dtype and device are given: the caller may have changed torch's defaults.
        strides = torch.tensor(pairs, dtype=torch.int64, device="cpu")
        sizes = len(ctx.lengths), len(query), *key.shape
        return query, key, value, strides, ctx.lengths, *sizes, ctx.scaling
