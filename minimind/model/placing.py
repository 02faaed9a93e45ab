"""Small tables that the host computes for a pack, on their way to where the pack is."""

from __future__ import annotations

from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor


def placed(array: NDArray[Any], device: torch.device) -> Tensor:
    """A table as a tensor on a device, same shape and dtype. Nothing waits for a GPU: it fetches the table itself."""
    tensor = torch.from_numpy(array)
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
