"""A device without contents: whatever would make the host wait for a GPU raises an error there.

On torch's device "meta" tensors have shapes and no values. An operation whose result the host must know (`item`,
`nonzero`, a copy to the CPU) fails by itself. `host_waits_raise` adds copies to the device for which torch waits until
the GPU has done its earlier work.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

DEVICE = torch.device("meta")
_COPIES = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
_MAKERS = (torch.tensor, torch.as_tensor, torch.asarray, Tensor.new_tensor)
_INDEXING = (Tensor.__getitem__, Tensor.__setitem__)


class HostWaitError(Exception):
    """The host would wait for the device."""


class _Operations(TorchDispatchMode):
    """Copies from the host to the device must be asynchronous, and nothing else may mix tensors of the two."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        # A scalar of the host is passed to a GPU's kernel as a number.
        from_host = [tensor for tensor in tensors if tensor.is_cpu and tensor.dim() > 0]
        on_device = any(tensor.is_meta for tensor in tensors) or kwargs.get("device") == DEVICE
        if from_host and on_device:
            if function not in _COPIES:
                raise HostWaitError(f"{function} has a tensor of the host and one of the device")
            if not (kwargs.get("non_blocking") or (len(args) > 2 and args[2])):
                raise HostWaitError(f"{function} to the device blocks")
        return function(*args, **kwargs)


class _Functions(TorchFunctionMode):
    """Tensors that are made of Python numbers on the device, which torch copies there with a wait."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        on_device = any(isinstance(one, Tensor) and one.is_meta for one in args[:1])
        if function in _MAKERS and (on_device or torch.device(kwargs.get("device") or "cpu") == DEVICE):
            data = args[0] if function is not Tensor.new_tensor else args[1]
            if not (isinstance(data, Tensor) and data.is_meta):
                raise HostWaitError(f"{function.__name__} makes a tensor of the host's values on the device")
        if function in _INDEXING and on_device:
            parts = args[1] if isinstance(args[1], tuple) else (args[1],)
            if any(isinstance(part, list | np.ndarray) for part in parts):
                raise HostWaitError("an index of the host's values is copied to the device")
        return function(*args, **kwargs)


@contextlib.contextmanager
def host_waits_raise() -> Iterator[None]:
    """Within the block no operation on tensors of `DEVICE` may make the host wait."""
    with _Operations(), _Functions():
        yield
