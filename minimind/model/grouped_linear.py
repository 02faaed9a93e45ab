"""Linear maps of rows that are sorted into groups, each group by a matrix of its own: the experts' products.

    x (N, in) sorted by group, weight (G, out, in), where each group ends -> (N, out)

In bfloat16 on a GPU that torch has a kernel for this is one launch whatever the groups' sizes are, and these never
leave the device. Elsewhere it is one product per group, for which the host has to know the sizes: a GPU is waited for.
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

# The major compute capabilities for which torch has a kernel (for others it would loop over the groups, waiting for the
# GPU as we do), and the first version of torch whose kernel is sound. torch 2.8 and 2.9 had it as a private function,
# which could hang on an empty group; before 2.13 the one for Blackwell could take the whole process down. A probe would
# not come back from either.
SOUND_SINCE = {9: "2.10", 10: "2.13"}


@dataclasses.dataclass(frozen=True, eq=False)
class Groups:
    """Which rows belong to which group.

    Attributes:
        ends: (G,) int32, on the rows' device: each group's rows end before it, and the next group's begin there.
    """

    ends: Tensor

    @functools.cached_property
    def slices(self) -> list[slice]:
        """The groups' rows; the device is waited for."""
        return [slice(start, end) for start, end in itertools.pairwise([0, *self.ends.tolist()])]


def one_by_one(x: Tensor, weight: Tensor, groups: Groups) -> Tensor:
    """x (N, in), weight (G, out, in) -> (N, out), group by group."""
    out = x.new_empty(len(x), weight.shape[1])
    for rows, matrix in zip(groups.slices, weight, strict=True):
        ops.matmul(x[rows], matrix.t(), out=out[rows])
    return out


def one_by_one_gradients(grad: Tensor, x: Tensor, weight: Tensor, groups: Groups) -> tuple[Tensor, Tensor]:
    """Gradients of x (N, in) and weight (G, out, in) for that of the output (N, out); zero for an empty group."""
    grad_x, grad_weight = torch.empty_like(x), torch.empty_like(weight)
    for rows, matrix, grad_matrix in zip(groups.slices, weight, grad_weight, strict=True):
        ops.matmul(grad[rows], matrix, out=grad_x[rows])
        ops.matmul(grad[rows].t(), x[rows], out=grad_matrix)
    return grad_x, grad_weight


def together(x: Tensor, weight: Tensor, groups: Groups) -> Tensor:
    """What `one_by_one` gives, by torch's grouped product."""
    return F.grouped_mm(x, weight.transpose(1, 2), offs=groups.ends)


def together_gradients(grad: Tensor, x: Tensor, weight: Tensor, groups: Groups) -> tuple[Tensor, Tensor]:
    """What `one_by_one_gradients` gives, by torch's grouped product."""
    # Transposed on the left and plain on the right is the one layout in which the kernel allows empty groups.
    return F.grouped_mm(grad, weight, offs=groups.ends), F.grouped_mm(grad.t(), x, offs=groups.ends)


def wrong_products(device: torch.device) -> list[str]:
    """Which of torch's grouped products differ from those group by group, tried on `device`."""
    # Small whole numbers, so that every sum is exact in bfloat16, whatever its order. Every other group is empty, and
    # there are more tiles of output than a GPU has cores: a kernel that leaves an empty group's tile as the core's last
    # one was is found out. A generator of its own: the run's random numbers must not depend on a probe.
    generator = torch.Generator().manual_seed(0)

    def numbers(*shape: int) -> Tensor:
        return torch.randint(-1, 2, shape, generator=generator, device="cpu").to(device, torch.bfloat16)

    groups = Groups(torch.tensor([37, 37, 101, 101, 102, 102, 128, 128], dtype=torch.int32, device=device))
    x, weight, grad = numbers(128, 512), numbers(8, 512, 512), numbers(128, 512)
    expected = (one_by_one(x, weight, groups), *one_by_one_gradients(grad, x, weight, groups))
    # What the allocator hands out next: results that a kernel never writes are then seen.
    spoiled = [torch.full_like(result, torch.nan) for result in expected]
    del spoiled
    found = (together(x, weight, groups), *together_gradients(grad, x, weight, groups))
    names = ("output", "gradient of the rows", "gradient of the matrices")
    return [name for name, one, other in zip(names, found, expected, strict=True) if not torch.equal(one, other)]


def why_not(device: torch.device) -> str:
    """Why torch's grouped product is of no use for bfloat16 on a GPU; empty if it is."""
    major, minor = torch.cuda.get_device_capability(device)
    if major not in SOUND_SINCE:
        return f"torch has no kernel of its grouped product for GPUs of compute capability {major}.{minor}"
    if not hasattr(F, "grouped_mm") or torch.__version__ < SOUND_SINCE[major]:
        return f"a grouped product for this GPU needs torch {SOUND_SINCE[major]} or newer; this is {torch.__version__}"
    try:
        wrong = wrong_products(device)
    except (RuntimeError, TypeError) as error:
        return f"torch's grouped product failed: {str(error).splitlines()[0]}"
    return f"torch's grouped product gives a wrong {' and a wrong '.join(wrong)}" if wrong else ""


@functools.cache
def grouped_product_works(device: torch.device) -> bool:
    """Whether bfloat16 rows on `device` go through torch's grouped product; tried once in a process.

    A CPU gains nothing from it: there torch loops over the groups too. A GPU on which it does not work is warned of.
    """
    if device.type != "cuda":
        return False
    reason = why_not(device)
    if reason:
        warnings.warn(f"experts run one after another, and every layer waits for the GPU: {reason}", stacklevel=2)
    return not reason


def goes_together(weight: Tensor, *rows: Tensor) -> bool:
    """Whether the grouped kernel takes weight (G, out, in) and rows of either width, and there is one."""
    # The kernel loads 16 bytes at a time, and under ZeRO a weight may lie anywhere in a buffer.
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
    """Saves the weight itself, no view of it: ZeRO-3 can free it after the forward, and has gathered it again before
    the backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, groups: Groups) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.groups = groups
        return (together if goes_together(weight, x) else one_by_one)(x, weight, groups)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight = ctx.saved_tensors
        grad = grad.contiguous()
        # Asked anew: under ZeRO-3 the weight may have been gathered to another place.
        gradients = together_gradients if goes_together(weight, x, grad) else one_by_one_gradients
        return *gradients(grad, x, weight, ctx.groups), None


# Compiled blocks call this as it is: the groups' sizes would be compiled anew for every batch.
@torch.compiler.disable
def grouped_linear(x: Tensor, weight: Tensor, groups: Groups) -> Tensor:
    """Rows x (N, in) through their group's matrix of weight (G, out, in) -> (N, out), x's dtype, differentiable once.

    Under autocast both are cast first, as `torch.nn.functional.linear` does.
    """
    kind = x.device.type
    if torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
        x, weight = x.to(dtype), weight.to(dtype)
    return _GroupedLinear.apply(x, weight, groups)
