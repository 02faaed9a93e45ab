"""Sends large tensors between CPU ranks of one machine through shared memory instead of sockets.

    deepspeed.comm -> its backend -> reduce, all-gather, reduce-scatter of large tensors -> DeepSpeed's sum in memory
                                     all other calls                                     -> torch (gloo)

DeepSpeed has this sum for inference and does not train with it. With two ranks the numbers equal gloo's. With more
ranks, 16-bit numbers are added in float32 and rounded once, where gloo rounds at every rank; float32 numbers are added
in another order. The sum waits for other ranks in a busy loop without a time limit, so all ranks first meet in a
barrier of torch, which has one.
"""

from __future__ import annotations

import os
import platform
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from minimind.engine.patches.buffers import Reservation, skip_buffers
from minimind.engine.patches.registry import Patch, PatchSelection, find
from minimind.errors import ConfigError

# DeepSpeed's communication backend; None before `init_distributed`.
_BACKEND = "deepspeed.comm.comm:cdb"
SHARE_MEMORY = Patch(
    name="share_memory",
    purpose="sends tensors of 256 KiB and more between CPU ranks of one machine through shared memory",
    without="CPU ranks communicate through sockets",
    names=(
        "deepspeed.comm.torch:TorchBackend.reduce",
        "deepspeed.comm.torch:TorchBackend._reduce_op",
        _BACKEND,
    ),
    attributes=("all_gather_function", "reduce_scatter_function", "shm_vector_kernel_level"),
)

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# DeepSpeed's kernel level 2 (AVX-512BW) has the sum in all three dtypes.
_KERNEL_LEVEL = 2
# Below 256 KiB sockets are as fast. DeepSpeed's sum counts bytes in 32 bits, so it gets at most 1 GiB at a time.
_MIN_BYTES, _MAX_BYTES = 2**18, 2**30


def reserve_memory(rank: int, size: int, patches: PatchSelection) -> Reservation | None:
    """Make room for DeepSpeed's buffers, or keep it from making them; before its `init_distributed`. All ranks call.

    Shared memory needs all ranks on one machine and a launcher that says so (deepspeed sets LOCAL_SIZE).

    Args:
        rank: this process.
        size: world size.
        patches: which patches the run uses.

    Returns:
        This rank's reservation; None if the ranks do not share memory.

    Raises:
        ConfigError: on all ranks, if the buffers do not fit and DeepSpeed cannot be kept from making them.
    """
    is_made = os.environ.get("LOCAL_SIZE") == str(size)
    # The ranks' flags in memory rely on the order in which x86 makes writes visible.
    wanted = is_made and size > 1 and platform.machine() in ("x86_64", "AMD64") and patches.uses(SHARE_MEMORY)
    if (not wanted and skip_buffers(patches)) or not is_made:
        return None
    reservation = Reservation(rank, size)
    if reservation.problem is None:
        return reservation
    if not skip_buffers(patches):
        raise ConfigError(f"DeepSpeed's shared memory does not fit: {reservation.problem}", agreed=True)
    patches.report(f"  the ranks communicate through sockets, which is slower: {reservation.problem}")
    return None


def share_memory(reservation: Reservation, rank: int, size: int, patches: PatchSelection) -> None:
    """Let DeepSpeed's engines communicate through shared memory if every rank can. All ranks must call.

    The names of the buffer files are removed: DeepSpeed never deletes them, and each rank of each run would leave
    66 MiB in memory until the machine restarts.

    Args:
        reservation: of this rank, by `reserve_memory`.
        rank, size, patches: as there.
    """
    backend = find(_BACKEND)
    usable = torch.tensor(int(_is_usable(backend) and patches.uses(SHARE_MEMORY, backend)))
    # Also a barrier: after it every rank has opened the other ranks' buffers, so their names can go.
    dist.all_reduce(usable, op=dist.ReduceOp.MIN)
    if usable:
        _SharedCollectives(backend, rank, size).install()
    reservation.release()


def _is_usable(backend: Any) -> bool:
    """Whether DeepSpeed's sum is loaded and has code for this processor."""
    loaded = hasattr(torch.ops.deepspeed, "inference_all_reduce_")
    return loaded and getattr(backend, "shm_vector_kernel_level", 0) >= _KERNEL_LEVEL


class _CompletedWork:
    """Handle of work that has already completed."""

    def wait(self) -> bool:
        return True


class _SharedCollectives:
    """Collectives that replace those of a DeepSpeed backend; the original ones handle all other tensors."""

    def __init__(self, backend: Any, rank: int, size: int) -> None:
        self._backend, self._rank, self._size = backend, rank, size
        self._reduce, self._all_gather = backend.reduce, backend.all_gather_function
        self._reduce_scatter = backend.reduce_scatter_function

    def install(self) -> None:
        self._backend.reduce = self.reduce
        self._backend.all_gather_function = self.all_gather
        self._backend.reduce_scatter_function = self.reduce_scatter

    def reduce(self, tensor: Tensor, dst: int, op: Any = dist.ReduceOp.SUM, group: Any = None, **options: Any) -> Any:
        """As torch's reduce, but every rank gets the sum."""
        if self._backend._reduce_op(op) != dist.ReduceOp.SUM or not self._supports(tensor, group):
            return self._reduce(tensor=tensor, dst=dst, op=op, group=group, **options)
        return self._sum(tensor)

    def all_gather(self, output_tensor: Tensor, input_tensor: Tensor, group: Any = None, **options: Any) -> Any:
        """As torch's all_gather_into_tensor: each rank fills its part, negative zeros elsewhere, and all are summed.

        Adding a negative zero changes no number. DeepSpeed's loop over the last few elements starts from a positive
        zero, so a negative zero may lose its sign there. A NaN stays a NaN, with other bits.
        """
        if output_tensor.numel() != self._size * input_tensor.numel() or not self._supports(output_tensor, group):
            return self._all_gather(output_tensor=output_tensor, input_tensor=input_tensor, group=group, **options)
        for rank, part in enumerate(output_tensor.detach().view(-1).chunk(self._size)):
            if rank != self._rank:
                part.fill_(-0.0)
            elif part.data_ptr() != input_tensor.data_ptr():
                part.copy_(input_tensor.view(-1))
        return self._sum(output_tensor)

    def reduce_scatter(
        self,
        output_tensor: Tensor,
        input_tensor: Tensor,
        op: Any = dist.ReduceOp.SUM,
        group: Any = None,
        **options: Any,
    ) -> Any:
        """As torch's reduce_scatter_tensor, but the input is overwritten.

        Used only if the output is the rank's own part of the input, as in DeepSpeed's calls: it does not read the other
        parts afterwards.
        """
        own = output_tensor.numel() * self._rank * output_tensor.element_size()
        within = output_tensor.data_ptr() == input_tensor.data_ptr() + own
        if op != dist.ReduceOp.SUM or not within or not self._supports(input_tensor, group):
            return self._reduce_scatter(output_tensor, input_tensor, op=op, group=group, **options)
        return self._sum(input_tensor)

    def _supports(self, tensor: Tensor, group: Any) -> bool:
        return (
            tensor.dtype in _DTYPES
            and tensor.numel() * tensor.element_size() >= _MIN_BYTES
            and tensor.is_contiguous()
            and dist.get_world_size(group) == self._size
        )

    def _sum(self, tensor: Tensor) -> _CompletedWork:
        """Sum a tensor over all ranks, in place."""
        dist.barrier()
        for part in tensor.detach().view(-1).split(_MAX_BYTES // tensor.element_size()):
            torch.ops.deepspeed.inference_all_reduce_(part)
        return _CompletedWork()
