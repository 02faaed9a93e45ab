"""What CPU ranks of one machine send each other: through memory that they share, not through sockets.

    deepspeed.comm -> its backend -> reduce, all-gather, reduce-scatter of large tensors -> DeepSpeed's sum in memory
                                     everything else                                     -> torch (gloo)

DeepSpeed has that sum for inference and does not train with it. Two ranks get gloo's numbers. Of more, 16-bit numbers
are added in float32 and rounded at the end, where gloo rounds at every rank, and float32 ones in another order. The sum
waits for other ranks without a pause or a limit: all meet in a barrier of torch's first.
"""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from deepspeed.comm import comm
from torch import Tensor

# The sum takes these; each processor that has the kernel of the third, DeepSpeed's level 2, has those of all.
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_LEVEL = 2
# Bytes from which memory is faster than sockets, and that the sum takes at once: it counts them in 32 bits.
_LEAST, _MOST = 2**18, 2**30
# A rank's buffer: two states, and two places each for small and large tensors. A smaller file has met a full /dev/shm.
_BUFFER_BYTES = 8 + 2 * (2**20 + 2**25)


def share_memory(rank: int, size: int) -> None:
    """Let DeepSpeed's engines use it where all ranks can: on one machine, under a launcher that says so (deepspeed).

    All ranks must call. The buffers lose their names: DeepSpeed never takes them off, and each rank of each run would
    leave 66 MiB of memory behind until the machine restarts. What is mapped stays usable without a name, and is freed
    with the last process, however that one ends.
    """
    usable = torch.tensor(int(size > 1 and _usable(rank, size)))
    # Also a barrier: by now every rank has opened the others' buffers.
    dist.all_reduce(usable, op=dist.ReduceOp.MIN)
    if usable:
        _Shared(comm.cdb, rank, size).take_over()
    _own_buffer(rank).unlink(missing_ok=True)


def _own_buffer(rank: int) -> Path:
    """The file of a rank's buffer, as DeepSpeed names it, until its name is taken off."""
    address, port = os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]
    return Path("/dev/shm") / f"deepspeed_allreduce_buffer_{os.getuid()}_{address}_{port}_{rank}"


def _usable(rank: int, size: int) -> bool:
    """Whether this rank's buffer is there and whole, and DeepSpeed's sum has code for this processor.

    Its ranks wait for each other's memory as x86 orders it.
    """
    if platform.machine() not in ("x86_64", "AMD64") or os.environ.get("LOCAL_SIZE") != str(size):
        return False
    if not hasattr(torch.ops.deepspeed, "inference_all_reduce_"):
        return False
    if getattr(comm.cdb, "shm_vector_kernel_level", 0) < _LEVEL:
        return False
    buffer = _own_buffer(rank)
    return buffer.exists() and buffer.stat().st_size >= _BUFFER_BYTES


class _Done:
    """What is waited for where nothing is left to wait for."""

    def wait(self) -> bool:
        return True


class _Shared:
    """The collectives of a DeepSpeed backend; those it had serve what memory does not."""

    def __init__(self, backend: Any, rank: int, size: int) -> None:
        self._backend, self._rank, self._size = backend, rank, size
        self._reduce, self._gather = backend.reduce, backend.all_gather_function
        self._scatter = backend.reduce_scatter_function

    def take_over(self) -> None:
        self._backend.reduce = self.reduce
        self._backend.all_gather_function = self.all_gather
        self._backend.reduce_scatter_function = self.reduce_scatter

    def reduce(self, tensor: Tensor, dst: int, op: Any = dist.ReduceOp.SUM, group: Any = None, **how: Any) -> Any:
        """As torch's; every rank gets the sum."""
        if self._backend._reduce_op(op) != dist.ReduceOp.SUM or not self._takes(tensor, group):
            return self._reduce(tensor=tensor, dst=dst, op=op, group=group, **how)
        return self._sum(tensor)

    def all_gather(self, output_tensor: Tensor, input_tensor: Tensor, group: Any = None, **how: Any) -> Any:
        """As torch's all_gather_into_tensor: the sum of what each rank has in its part, and negative zeros elsewhere.

        A negative zero changes no number that it is added to. DeepSpeed's loop over the last few elements begins at a
        positive one: a negative zero may lose its sign there. A NaN stays one, of other bits.
        """
        if output_tensor.numel() != self._size * input_tensor.numel() or not self._takes(output_tensor, group):
            return self._gather(output_tensor=output_tensor, input_tensor=input_tensor, group=group, **how)
        for rank, part in enumerate(output_tensor.detach().view(-1).chunk(self._size)):
            if rank != self._rank:
                part.fill_(-0.0)
            elif part.data_ptr() != input_tensor.data_ptr():
                part.copy_(input_tensor.view(-1))
        return self._sum(output_tensor)

    def reduce_scatter(
        self, output_tensor: Tensor, input_tensor: Tensor, op: Any = dist.ReduceOp.SUM, group: Any = None, **how: Any
    ) -> Any:
        """As torch's reduce_scatter_tensor; where the output is the rank's own part of the input, as DeepSpeed's are,
        the other parts need not stay what they were."""
        own = output_tensor.numel() * self._rank * output_tensor.element_size()
        within = output_tensor.data_ptr() == input_tensor.data_ptr() + own
        if op != dist.ReduceOp.SUM or not within or not self._takes(input_tensor, group):
            return self._scatter(output_tensor, input_tensor, op=op, group=group, **how)
        return self._sum(input_tensor)

    def _takes(self, tensor: Tensor, group: Any) -> bool:
        return (
            tensor.dtype in _DTYPES
            and tensor.numel() * tensor.element_size() >= _LEAST
            and tensor.is_contiguous()
            and dist.get_world_size(group) == self._size
        )

    def _sum(self, tensor: Tensor) -> _Done:
        dist.barrier()
        for part in tensor.detach().view(-1).split(_MOST // tensor.element_size()):
            torch.ops.deepspeed.inference_all_reduce_(part)
        return _Done()
