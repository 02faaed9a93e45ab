"""Copies small index tables of a pack, which the host computes with numpy, to the device of the pack."""

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
