"""Matrix products, and the layers that consist of them, with gradients.

    ops.py -> linear, linears, feed_forward (autograd functions) -> products that share a matrix -> kernel or torch
    ops.py -> matmul                                             -> one product                  -> kernel or torch

All tensors are bfloat16 on a CPU unless a docstring says otherwise; ops.py checks that. Arguments and results are those
of ops.py's function of the same name. Whether the kernel of matmul.cpp multiplies two matrices also depends on their
layout and on the processor: torch multiplies the others, in the same order of steps. On a processor without bfloat16
instructions it multiplies in float32, which is several times as fast there as its own bfloat16, and rounds once.
"""

from __future__ import annotations

import ctypes
import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from minimind.native.functions import call
from minimind.native.processor import Products
from minimind.native.selection import kernels_take

# The kernel copies the right matrix into another layout first. With fewer rows on the left, as when a text is generated
# token by token, that costs more than it saves.
_MIN_ROWS = 32


@dataclasses.dataclass(frozen=True, slots=True)
class Product:
    """left (rows, depth) @ right (depth, columns) [+ residual] -> out (rows, columns), written in place.

    left and right may be transposed views. Rows of residual and out are contiguous, and may be any distance apart.
    """

    left: Tensor
    right: Tensor
    out: Tensor
    residual: Tensor | None = None

    @property
    def transposed(self) -> tuple[bool, bool]:
        """Whether left and right are stored column by column."""
        return _transposed(self.left, self.right)


def matmul(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """No gradient."""
    if a.dim() != 2 or b.dim() != 2 or a.shape[1] != b.shape[0]:
        return torch.mm(a, b)  # raises its own error
    if out is None:
        out = a.new_empty(a.shape[0], b.shape[1])
    _multiply_any([Product(a, b, out)])
    return out


def linear(x: Tensor, weight: Tensor, residual: Tensor | None = None) -> Tensor:
    """Saves x or the weight only if the other's gradient is asked for."""
    return _Linears.apply(x, residual, weight)[0]


def linears(x: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
    """The gradients of x are summed in float32 and rounded once."""
    return _Linears.apply(x, None, *weights)


def feed_forward(x: Tensor, gate: Tensor, up: Tensor, down: Tensor, residual: Tensor) -> Tensor:
    """The input of `down` is not saved for backward, but recomputed from its two factors."""
    # Gradients are always disabled inside an autograd function's `forward`, so their state outside is an argument.
    return _FeedForward.apply(x, gate, up, down, residual, torch.is_grad_enabled())


def _fits(a: Tensor, b: Tensor, out: Tensor | None = None) -> bool:
    """Whether the kernel can multiply these matrices and is worth it on this processor.

    False also for shapes that do not match: torch then raises its own error.
    """
    if a.dim() != 2 or b.dim() != 2 or a.shape[1] != b.shape[0]:
        return False
    (rows, depth), columns = a.shape, b.shape[1]
    if rows < _MIN_ROWS or depth == 0 or columns == 0:
        return False
    if out is not None and not (kernels_take(out) and out.shape == (rows, columns) and out.stride(1) == 1):
        return False
    row_major_b, column_major_b = b.stride(1) == 1, b.stride(0) == 1
    if a.stride(1) != 1:
        layout_fits = a.stride(0) == 1 and row_major_b
    else:
        # The kernel reads pairs of successive elements from each row of `a`.
        layout_fits = depth % 2 == 0 and (row_major_b or column_major_b)
    return layout_fits and _fastest() is Products.KERNEL


@functools.cache
def _fastest() -> Products:
    return Products(call("bfloat16_products"))


def widens() -> bool:
    """Whether products are computed in float32, which needs memory for the matrices and the result in float32."""
    return _fastest() is Products.FLOAT32


def _transposed(a: Tensor, b: Tensor) -> tuple[bool, bool]:
    return a.stride(1) != 1, b.stride(1) != 1


def _multiply(products: Sequence[Product]) -> None:
    """Call the kernel for products that fit it, all transposed alike: either all have one `out`, which becomes their
    sum, or each has its own."""
    a_transposed, b_transposed = products[0].transposed
    fields: list[int] = []
    for product in products:
        a, b, out, residual = product.left, product.right, product.out, product.residual
        # In the order of `struct Product` in matmul.cpp; the kernel fills in the last two.
        fields += a.data_ptr(), b.data_ptr(), 0 if residual is None else residual.data_ptr(), out.data_ptr()
        fields += a.shape[0], b.shape[1], a.shape[1], a.stride(int(a_transposed)), b.stride(int(b_transposed))
        fields += 0 if residual is None else residual.stride(0), out.stride(0), 0, 0
    structs = (ctypes.c_long * len(fields))(*fields)
    words = call("matmul_space", structs, len(products), a_transposed)
    # Torch allocates it: its allocator gives the same memory back in every step, where the kernel's own would ask the
    # system.
    space = products[0].left.new_empty(words, dtype=torch.int32)
    call("matmul", structs, len(products), space, words, a_transposed, b_transposed)


def _multiply_any(products: Sequence[Product]) -> None:
    """As `_multiply`, of any layout and dtype: in one call of the kernel if all products fit it, else by torch."""
    takes = all(kernels_take(p.left, p.right) for p in products)
    # All or none: a sum whose parts went different ways would round in between.
    fit = takes and all(_fits(p.left, p.right, p.out) for p in products)
    if fit and len({p.transposed for p in products}) == 1:
        return _multiply(products)
    if takes and widens():
        return _multiply_in_float32(products)
    for number, product in enumerate(products):
        # Several products into one `out` are a sum: the first one writes, the others add.
        if number and product.out is products[0].out:
            product.out.addmm_(product.left, product.right)
        else:
            torch.mm(product.left, product.right, out=product.out)
        if product.residual is not None:
            product.out.add_(product.residual)


def _multiply_in_float32(products: Sequence[Product]) -> None:
    """As `_multiply`: matrices are cast to float32, each once, and every result or sum of results is rounded once."""
    wide: dict[int, Tensor] = {}  # by the address of a Python object, which lives as long as `products`

    def cast(x: Tensor) -> Tensor:
        if id(x) not in wide:
            wide[id(x)] = x.float()
        return wide[id(x)]

    total: Tensor | None = None
    for number, product in enumerate(products):
        left, right = cast(product.left), cast(product.right)
        if total is not None:
            total.addmm_(left, right)
        else:
            total = torch.mm(left, right)
        # Rounded once, when the last product of an `out` is in the sum.
        if number + 1 == len(products) or products[number + 1].out is not product.out:
            product.out.copy_(total)
            total = None
        if product.residual is not None:
            product.out.add_(product.residual)


def _as_rows(x: Tensor) -> Tensor:
    """x (..., size) as a matrix (rows, size)."""
    return x.reshape(-1, x.shape[-1])


def _as_shape_of(x: Tensor, rows: Tensor) -> Tensor:
    """A matrix (rows, size) with the leading dimensions of x (..., any size)."""
    return rows.view(*x.shape[:-1], rows.shape[-1])


def _grad_input(grads: Sequence[Tensor], weights: Sequence[Tensor]) -> Tensor:
    """The gradient of the rows (T, in) that weights (out, in) were applied to, from the outputs' gradients (T, out)."""
    grad_rows = grads[0].new_empty(len(grads[0]), weights[0].shape[1])
    _multiply_any([Product(grad, weight, grad_rows) for grad, weight in zip(grads, weights, strict=True)])
    return grad_rows


def _grad_weights(grads: Sequence[Tensor], rows: Tensor, needed: Sequence[bool]) -> list[Tensor | None]:
    """The gradients (out, in) of weights applied to rows (T, in), from outputs' gradients (T, out), where needed."""
    pairs = zip(grads, needed, strict=True)
    grad_weights = [grad.new_empty(grad.shape[1], rows.shape[1]) if need else None for grad, need in pairs]
    wanted = [(grad, out) for grad, out in zip(grads, grad_weights, strict=True) if out is not None]
    _multiply_any([Product(grad.t(), rows, out) for grad, out in wanted])
    return grad_weights


class _Linears(torch.autograd.Function):
    """Saves only what the gradients that are asked for need."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, residual: Tensor | None, *weights: Tensor) -> tuple[Tensor, ...]:
        rows = _as_rows(x)
        needs_x, _, *need_weights = ctx.needs_input_grad
        ctx.save_for_backward(rows if any(need_weights) else None, *(w if needs_x else None for w in weights))
        outs = [rows.new_empty(len(rows), len(weight)) for weight in weights]
        assert residual is None or (residual.shape, residual.dtype) == ((*x.shape[:-1], len(weights[0])), x.dtype)
        added = None if residual is None else _as_rows(residual).contiguous()
        _multiply_any([Product(rows, weight.t(), out, added) for weight, out in zip(weights, outs, strict=True)])
        return tuple(_as_shape_of(x, out) for out in outs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        rows, *weights = ctx.saved_tensors
        needs_x, needs_residual, *need_weights = ctx.needs_input_grad
        flat = [_as_rows(grad) for grad in grads]
        grad_x = _as_shape_of(grads[0], _grad_input(flat, weights)) if needs_x else None
        return grad_x, grads[0] if needs_residual else None, *_grad_weights(flat, rows, need_weights)


class _FeedForward(torch.autograd.Function):
    """Saves x and the two factors of `down`'s input."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, gate: Tensor, up: Tensor, down: Tensor, residual: Tensor, grad_enabled: bool
    ) -> Tensor:
        assert gate.shape == up.shape == down.shape[::-1]
        assert residual.shape == (*x.shape[:-1], len(down))
        assert residual.dtype == x.dtype
        rows = _as_rows(x)
        inner, out = rows.new_empty(len(rows), len(gate)), rows.new_empty(len(rows), len(down))
        save = grad_enabled and any(ctx.needs_input_grad)
        factors = _FeedForward.inner(rows, gate, up, inner, save)
        _multiply_any([Product(inner, down.t(), out, _as_rows(residual).contiguous())])
        if save:
            ctx.save_for_backward(rows, *factors, gate, up, down)
        return _as_shape_of(x, out)

    @staticmethod
    def inner(rows: Tensor, gate: Tensor, up: Tensor, inner: Tensor, save: bool) -> tuple[Tensor | None, Tensor | None]:
        """Fills inner (T, inner size) with silu(rows @ gate.t()) * (rows @ up.t()); the two products, if saved."""
        # The fused kernel reads weights as they are stored, (out, in), row by row.
        transposed = {_transposed(rows, weight.t()) for weight in (gate, up)}
        if all(_fits(rows, weight.t()) for weight in (gate, up)) and transposed == {(False, True)}:
            gate_out, up_out = (torch.empty_like(inner) if save else None for _ in range(2))
            space = rows.new_empty(call("matmul_swiglu_space", *gate.shape), dtype=torch.int32)
            sizes = *inner.shape, rows.shape[1], *(matrix.stride(0) for matrix in (rows, gate, up))
            call("matmul_swiglu", rows, gate, up, gate_out, up_out, inner, space, *sizes)
        else:
            gate_out, up_out = torch.empty_like(inner), torch.empty_like(inner)
            _multiply_any([Product(rows, gate.t(), gate_out), Product(rows, up.t(), up_out)])
            call("swiglu_forward", gate_out, up_out, inner, inner.numel())
        return gate_out, up_out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        rows, gate_out, up_out, gate, up, down = ctx.saved_tensors
        needs_x, needs_gate, needs_up, needs_down, needs_residual, _ = ctx.needs_input_grad
        grad = _as_rows(grads[0])
        grad_inner = _grad_input([grad], [down])
        # The kernel writes `down`'s input again beside the gradients: saved, it would be a third (T, inner size) tensor
        # of each layer.
        inner, *grad_factors = (torch.empty_like(gate_out) for _ in range(3))
        call("swiglu_backward", grad_inner, gate_out, up_out, *grad_factors, inner, inner.numel())
        (grad_down,) = _grad_weights([grad], inner, [needs_down])
        grad_x = _as_shape_of(grads[0], _grad_input(grad_factors, [gate, up])) if needs_x else None
        grad_gate, grad_up = _grad_weights(grad_factors, rows, [needs_gate, needs_up])
        return grad_x, grad_gate, grad_up, grad_down, grads[0] if needs_residual else None, None
