"""Matrix products of groups of rows, each group with its own matrix: the linear layers of all experts at once.

    x (N, in) sorted by group, weight (G, out, in), end of each group -> grouped_linear -> (N, out)

In bfloat16, on a GPU for which torch has a correct grouped kernel, this is one launch for all groups, and the group
sizes stay on the device. Elsewhere it is one product for each group. The host needs the sizes for this, so it waits for
a GPU.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import warnings
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from minimind.native import ops

# Major compute capability -> first torch version with a correct grouped kernel. For other GPUs torch loops over the
# groups and waits, as this module does. torch 2.8 and 2.9 had the kernel as a private function, which could hang on an
# empty group; before 2.13 the one for Blackwell could crash the process. Neither can be found out by a trial call, so
# the versions are listed.
FIRST_CORRECT_TORCH = {9: "2.10", 10: "2.13"}


@dataclasses.dataclass(frozen=True, eq=False)
class Groups:
    """The division of N rows into G consecutive groups.

    Attributes:
        ends: (G,) int32, on the device of the rows: index after the last row of each group.
    """

    ends: Tensor

    @functools.cached_property
    def slices(self) -> list[slice]:
        """The rows of each group. The host waits for the device."""
        return [slice(start, end) for start, end in itertools.pairwise([0, *self.ends.tolist()])]


def per_group_product(x: Tensor, weight: Tensor, groups: Groups) -> Tensor:
    """x (N, in), weight (G, out, in) -> (N, out), one product for each group."""
    out = x.new_empty(len(x), weight.shape[1])
    for rows, matrix in zip(groups.slices, weight, strict=True):
        ops.matmul(x[rows], matrix.t(), out=out[rows])
    return out


def per_group_gradients(grad: Tensor, x: Tensor, weight: Tensor, groups: Groups) -> tuple[Tensor, Tensor]:
    """Gradients of x (N, in) and weight (G, out, in), from grad (N, out); zero for the matrix of an empty group."""
    grad_x, grad_weight = torch.empty_like(x), torch.empty_like(weight)
    for rows, matrix, grad_matrix in zip(groups.slices, weight, grad_weight, strict=True):
        ops.matmul(grad[rows], matrix, out=grad_x[rows])
        ops.matmul(grad[rows].t(), x[rows], out=grad_matrix)
    return grad_x, grad_weight


def grouped_product(x: Tensor, weight: Tensor, groups: Groups) -> Tensor:
    """The same as `per_group_product`, in one call of torch's grouped product."""
    return F.grouped_mm(x, weight.transpose(1, 2), offs=groups.ends)


def grouped_gradients(grad: Tensor, x: Tensor, weight: Tensor, groups: Groups) -> tuple[Tensor, Tensor]:
    """The same as `per_group_gradients`, in two calls of torch's grouped product."""
    # The kernel allows empty groups only if the left matrix is transposed and the right one is not.
    return F.grouped_mm(grad, weight, offs=groups.ends), F.grouped_mm(grad.t(), x, offs=groups.ends)


def wrong_products(device: torch.device) -> list[str]:
    """Names of the results in which torch's grouped products differ from the products per group on `device`."""
    # Integers of -1 to 1: every sum is exact in bfloat16, in any order. Every other group is empty, and the output has
    # more tiles than a GPU has cores: this finds a kernel that leaves stale values in the tile of an empty group. The
    # generator is separate, because the random numbers of the run must not depend on this check.
    generator = torch.Generator().manual_seed(0)

    def numbers(*shape: int) -> Tensor:
        return torch.randint(-1, 2, shape, generator=generator, device="cpu").to(device, torch.bfloat16)

    groups = Groups(torch.tensor([37, 37, 101, 101, 102, 102, 128, 128], dtype=torch.int32, device=device))
    x, weight, grad = numbers(128, 512), numbers(8, 512, 512), numbers(128, 512)
    expected = (per_group_product(x, weight, groups), *per_group_gradients(grad, x, weight, groups))
    # The allocator reuses this memory for the next results: an element that the kernel does not write stays NaN.
    poisoned = [torch.full_like(result, torch.nan) for result in expected]
    del poisoned
    found = (grouped_product(x, weight, groups), *grouped_gradients(grad, x, weight, groups))
    names = ("output", "gradient of the rows", "gradient of the weights")
    return [name for name, one, other in zip(names, found, expected, strict=True) if not torch.equal(one, other)]


def grouped_product_obstacle(device: torch.device) -> str | None:
    """The reason why torch's grouped product cannot be used for bfloat16 on this GPU, or None."""
    major, minor = torch.cuda.get_device_capability(device)
    if major not in FIRST_CORRECT_TORCH:
        return f"torch has no grouped product kernel for GPUs of compute capability {major}.{minor}"
    if not hasattr(F, "grouped_mm") or torch.__version__ < FIRST_CORRECT_TORCH[major]:
        return (
            f"the grouped product on this GPU needs torch {FIRST_CORRECT_TORCH[major]} or newer; this is "
            f"{torch.__version__}"
        )
    try:
        wrong = wrong_products(device)
    except (RuntimeError, TypeError) as error:
        return f"torch's grouped product failed: {str(error).splitlines()[0]}"
    return f"torch's grouped product computes a wrong {' and a wrong '.join(wrong)}" if wrong else None


@functools.cache
def grouped_product_works(device: torch.device) -> bool:
    """Whether bfloat16 rows on `device` can use torch's grouped product; checked once in a process.

    Warns if a GPU cannot. On a CPU the answer is no: torch would loop over the groups there too.
    """
    if device.type != "cuda":
        return False
    reason = grouped_product_obstacle(device)
    if reason is not None:
        warnings.warn(
            f"experts are computed one after another, and every layer waits for the GPU: {reason}", stacklevel=2
        )
    return reason is None


def uses_grouped_product(weight: Tensor, *rows: Tensor) -> bool:
    """Whether weight (G, out, in) and rows (N, in or out) meet the conditions of the grouped kernel, and it works."""
    # The kernel loads 16 bytes (8 numbers) at a time, and ZeRO may place a weight at any offset in a buffer.
    return (
        len(weight) < 1024
        and weight.shape[1] % 8 == 0
        and weight.shape[2] % 8 == 0
        and all(
            tensor.dtype == torch.bfloat16 and tensor.is_contiguous() and tensor.data_ptr() % 16 == 0
            for tensor in (weight, *rows)
        )
        and grouped_product_works(weight.device)
    )


class _GroupedLinear(torch.autograd.Function):
    """Differentiable product of groups. Autograd saves the parameter itself and no view of it: ZeRO-3 frees the
    parameter's data after the forward and gathers it again before the backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, groups: Groups) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.groups = groups
        return (grouped_product if uses_grouped_product(weight, x) else per_group_product)(x, weight, groups)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight = ctx.saved_tensors
        grad = grad.contiguous()
        # Decided again: ZeRO-3 may have gathered the weight at another address, with another alignment.
        gradients = grouped_gradients if uses_grouped_product(weight, x, grad) else per_group_gradients
        return *gradients(grad, x, weight, ctx.groups), None


# Not compiled: a compiled block would be recompiled for the group sizes of each batch.
@torch.compiler.disable
def grouped_linear(x: Tensor, weight: Tensor, groups: Groups) -> Tensor:
    """Multiply rows x (N, in) by the matrix of their group in weight (G, out, in) -> (N, out), in x's dtype.

    Differentiable once. Under autocast both are cast first, as in `torch.nn.functional.linear`.
    """
    kind = x.device.type
    if torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
        x, weight = x.to(dtype), weight.to(dtype)
    return _GroupedLinear.apply(x, weight, groups)
