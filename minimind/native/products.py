"""Products of matrices, and layers that are little else, with gradients.

    linear, linears, feed_forward (autograd functions) -> products that have a matrix in common -> kernel, else torch
    matmul                                             -> one product                           -> kernel, else torch

All tensors are bfloat16 on a CPU where nothing else is said.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from minimind.native.functions import applies, call

# Fewer rows, as of a text that is generated token by token, are not worth rearranging the right matrix for.
_MATMUL_ROWS = 32

# A product: left matrix, right matrix, what becomes of them, and what is added to it.
Product = tuple[Tensor, Tensor, Tensor, Tensor | None]


def matmul(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """`torch.mm(a, b, out=out)`, of any dtype on any device; no gradient.

    a (rows, depth), b (depth, columns); either may be a transposed view, and rows may lie apart.
    """
    if not (applies(a, b) and _takes(a, b, out)):
        return torch.mm(a, b) if out is None else torch.mm(a, b, out=out)
    if out is None:
        out = a.new_empty(a.shape[0], b.shape[1])
    _multiply([(a, b, out, None)])
    return out


def linear(x: Tensor, weight: Tensor, added: Tensor | None = None) -> Tensor:
    """`F.linear(x, weight) + added`, to the bit as in two steps: x (..., in), weight (out, in), added (..., out)."""
    return _Linears.apply(x, added, weight)[0]


def linears(x: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
    """`linear(x, weight)` for each weight; x's gradient is summed over them in float32 and rounded once."""
    return _Linears.apply(x, None, *weights)


def feed_forward(x: Tensor, gate: Tensor, up: Tensor, down: Tensor, added: Tensor) -> Tensor:
    """SwiGLU network: `linear(silu(linear(x, gate)) * linear(x, up), down, added)`, x and added (..., H).

    What goes into `down` is not kept for backward, but made again.
    """
    return _FeedForward.apply(x, gate, up, down, added, torch.is_grad_enabled())


def _takes(a: Tensor, b: Tensor, out: Tensor | None = None) -> bool:
    """Whether the kernel takes these matrices, and is made for this processor. What is wrong is torch's to refuse."""
    if a.dim() != 2 or b.dim() != 2 or a.shape[1] != b.shape[0]:
        return False
    (rows, depth), columns = a.shape, b.shape[1]
    if rows < _MATMUL_ROWS or depth == 0 or columns == 0:
        return False
    if out is not None and not (applies(out) and out.shape == (rows, columns) and out.stride(1) == 1):
        return False
    a_turned, b_lies, b_turned = a.stride(1) != 1, b.stride(1) == 1, b.stride(0) == 1
    # Pairs of elements are read along rows of an `a` that is not turned.
    fits = a.stride(0) == 1 and b_lies if a_turned else depth % 2 == 0 and (b_lies or b_turned)
    return fits and _made_for_this()


@functools.cache
def _made_for_this() -> bool:
    return bool(call("made_for_matmul"))


def _turned(a: Tensor, b: Tensor, *_: Tensor | None) -> tuple[bool, bool]:
    return a.stride(1) != 1, b.stride(1) != 1


def _multiply(products: Sequence[Product]) -> None:
    """Products that the kernel takes, turned alike: with one `out` for all, which is their sum, or no two."""
    a_turned, b_turned = _turned(*products[0])
    fields: list[int] = []
    for a, b, out, added in products:
        fields += a.data_ptr(), b.data_ptr(), 0 if added is None else added.data_ptr(), out.data_ptr()
        fields += a.shape[0], b.shape[1], a.shape[1], a.stride(int(a_turned)), b.stride(int(b_turned))
        fields += 0 if added is None else added.stride(0), out.stride(0), 0, 0
    described = (ctypes.c_long * len(fields))(*fields)  # as matmul.cpp's `Product`s
    words = call("matmul_space", described, len(products), a_turned)
    space = products[0][0].new_empty(words, dtype=torch.int32)
    call("matmul", described, len(products), space, words, a_turned, b_turned)


def _all_products(products: Sequence[Product]) -> None:
    """As `_multiply`, of matrices of any kind."""
    taken = all(applies(a, b) and _takes(a, b, out) for a, b, out, _ in products)
    if taken and len({_turned(*product) for product in products}) == 1:
        return _multiply(products)
    for number, (a, b, out, added) in enumerate(products):
        if number and out is products[0][2]:
            out.addmm_(a, b)
        else:
            torch.mm(a, b, out=out)
        if added is not None:
            out += added


def _rows(x: Tensor) -> Tensor:
    """All dimensions but the last as one."""
    return x.reshape(-1, x.shape[-1])


def _like(x: Tensor, rows: Tensor) -> Tensor:
    """The dimensions of x again, but for the last."""
    return rows.view(*x.shape[:-1], rows.shape[-1])


def _grad_x(grads: Sequence[Tensor], weights: Sequence[Tensor]) -> Tensor:
    """The gradient of rows (T, in) that went through some weights (out, in), of outputs' gradients (T, out)."""
    grad_x = grads[0].new_empty(len(grads[0]), weights[0].shape[1])
    _all_products([(grad, weight, grad_x, None) for grad, weight in zip(grads, weights, strict=True)])
    return grad_x


def _grad_weights(grads: Sequence[Tensor], rows: Tensor, wanted: Sequence[bool]) -> list[Tensor | None]:
    """The gradients (out, in) of weights that rows (T, in) went through, of outputs' gradients (T, out)."""
    pairs = zip(grads, wanted, strict=True)
    made = [grad.new_empty(grad.shape[1], rows.shape[1]) if want else None for grad, want in pairs]
    _all_products([(grad.t(), rows, out, None) for grad, out in zip(grads, made, strict=True) if out is not None])
    return made


class _Linears(torch.autograd.Function):
    """Keeps what the gradients that are asked for need."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, added: Tensor | None, *weights: Tensor) -> tuple[Tensor, ...]:
        rows = _rows(x)
        needs_x, _, *need_weights = ctx.needs_input_grad
        ctx.save_for_backward(rows if any(need_weights) else None, *(w if needs_x else None for w in weights))
        outs = [rows.new_empty(len(rows), len(weight)) for weight in weights]
        assert added is None or (added.shape, added.dtype) == ((*x.shape[:-1], len(weights[0])), x.dtype)
        more = None if added is None else _rows(added).contiguous()
        _all_products([(rows, weight.t(), out, more) for weight, out in zip(weights, outs, strict=True)])
        return tuple(_like(x, out) for out in outs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        rows, *weights = ctx.saved_tensors
        needs_x, needs_added, *need_weights = ctx.needs_input_grad
        flat = [_rows(grad) for grad in grads]
        grad_x = _like(grads[0], _grad_x(flat, weights)) if needs_x else None
        return grad_x, grads[0] if needs_added else None, *_grad_weights(flat, rows, need_weights)


class _FeedForward(torch.autograd.Function):
    """Keeps x and the factors of what goes into `down`."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, gate: Tensor, up: Tensor, down: Tensor, added: Tensor, grad_enabled: bool
    ) -> Tensor:
        assert gate.shape == up.shape == down.shape[::-1]
        assert added.shape == (*x.shape[:-1], len(down))
        assert added.dtype == x.dtype
        rows = _rows(x)
        inner, out = rows.new_empty(len(rows), len(gate)), rows.new_empty(len(rows), len(down))
        kept = grad_enabled and any(ctx.needs_input_grad)
        if all(_takes(rows, weight.t()) and _turned(rows, weight.t()) == (False, True) for weight in (gate, up)):
            gated, upped = (torch.empty_like(inner) if kept else None for _ in range(2))
            space = rows.new_empty(call("swiglu_space", *gate.shape), dtype=torch.int32)
            sizes = *inner.shape, rows.shape[1], *(matrix.stride(0) for matrix in (rows, gate, up))
            call("matmul_swiglu", rows, gate, up, gated, upped, inner, space, *sizes)
        else:
            gated, upped = torch.empty_like(inner), torch.empty_like(inner)
            _all_products([(rows, gate.t(), gated, None), (rows, up.t(), upped, None)])
            call("swiglu_forward", gated, upped, inner, inner.numel())
        _all_products([(inner, down.t(), out, _rows(added).contiguous())])
        if kept:
            ctx.save_for_backward(rows, gated, upped, gate, up, down)
        return _like(x, out)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        rows, gated, upped, gate, up, down = ctx.saved_tensors
        needs_x, needs_gate, needs_up, needs_down, needs_added, _ = ctx.needs_input_grad
        grad = _rows(grads[0])
        grad_inner = _grad_x([grad], [down])
        inner, *inners = (torch.empty_like(gated) for _ in range(3))
        call("swiglu_backward", grad_inner, gated, upped, *inners, inner, inner.numel())
        (grad_down,) = _grad_weights([grad], inner, [needs_down])
        grad_x = _like(grads[0], _grad_x(inners, [gate, up])) if needs_x else None
        grad_gate, grad_up = _grad_weights(inners, rows, [needs_gate, needs_up])
        return grad_x, grad_gate, grad_up, grad_down, grads[0] if needs_added else None, None
