"""Copies small tables between the host and the device of a batch, without a wait of the host for a GPU.

array of the host -> to_device -> tensor     enqueued; the host goes on
tensor -> HostCopy ... HostCopy.numpy()      enqueued; the host waits when it reads
"""

from __future__ import annotations

from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor


def to_device(array: NDArray[Any], device: torch.device) -> Tensor:
    """The array as a tensor on `device`, with the same shape and dtype; on a CPU it shares the array's memory.

    The host does not wait for a GPU: from pinned memory the copy is asynchronous. torch's allocator of pinned memory
    keeps the block until the copy is done.
    """
    tensor = torch.from_numpy(array)
    # Only a copy from pinned memory is asynchronous; on a CPU pinning would copy for nothing.
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


class HostCopy:
    """A copy of a tensor in the host's memory. Work that is enqueued after it need not be done before it is read.

    Args:
        tensor: on any device.
    """

    def __init__(self, tensor: Tensor) -> None:
        self._copy = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu", pin_memory=tensor.is_cuda)
        self._copy.copy_(tensor, non_blocking=True)
        self._done = torch.cuda.Event() if tensor.is_cuda else None
        if self._done is not None:
            self._done.record()

    def numpy(self) -> NDArray[Any]:
        """The copied values; waits until the tensor has been computed and copied."""
        if self._done is not None:
            self._done.synchronize()
        return self._copy.numpy()
