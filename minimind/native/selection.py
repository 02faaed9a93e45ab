"""Which implementation of the operations in ops.py this process uses: torch's or the compiled kernels.

    prepare()       a training run, once at start: kernels from here on; the compiler starts in the background
    using("torch")  a test or a comparison: torch's way within a `with` block
    neither         torch's way: importing and using `minimind` never starts a compiler

`_selected` is the only state that the operations depend on. It belongs to the process, not to a thread: autograd runs
backward in threads of its own, and these must take the same way as the forward.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator

import torch
from torch import Tensor

from minimind.native import library

AUTO, TORCH = "auto", "torch"
KERNELS = (AUTO, TORCH)


@dataclasses.dataclass(kw_only=True, slots=True)
class _Selection:
    """Whether kernels are used where they exist."""

    kernels: bool


_selected = _Selection(kernels=False)


def prepare(*, kernels: bool = True, heap: bool = True) -> None:
    """Use the kernels from here on, or torch's way alone, in this process. Returns at once.

    What is used is compiled in background threads. The first operation that needs a kernel waits for the compiler, so
    that a run's numbers do not depend on how long it takes.

    Args:
        kernels: use the kernels where they exist; False: torch's way for everything, nothing is compiled for it.
        heap: compile the heap, which `keep_memory` installs.
    """
    _selected.kernels = kernels
    library.compile_in_background(kernels=kernels, heap=heap)


@contextlib.contextmanager
def using(kernels: str) -> Iterator[None]:
    """Within the block the process uses "auto" (kernels where they exist) or "torch"; afterwards what it used before.

    Raises:
        ValueError: `kernels` is neither.
    """
    if kernels not in KERNELS:
        raise ValueError(f"kernels must be one of {', '.join(KERNELS)}, not {kernels!r}")
    # Restored in any case: a test that fails within the block must not change those after it.
    before, _selected.kernels = _selected.kernels, kernels == AUTO
    try:
        yield
    finally:
        _selected.kernels = before


def kernels_take(*tensors: Tensor) -> bool:
    """Whether the CPU's kernels are selected, compiled, and made for these tensors: bfloat16 on a CPU.

    They are not used under torch.compile, which fuses operations itself.
    """
    # Asked a thousand times a step while the other cores wait: the cheapest and most selective tests come first.
    for tensor in tensors:
        if tensor.dtype is not torch.bfloat16 or not tensor.is_cpu:
            return False
    return not torch.compiler.is_compiling() and _selected.kernels and library.compiled_kernels() is not None


def gpu_kernels_take(*tensors: Tensor) -> bool:
    """Whether kernels are selected and all tensors are on a GPU."""
    return _selected.kernels and not torch.compiler.is_compiling() and all(tensor.is_cuda for tensor in tensors)
