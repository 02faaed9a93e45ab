"""Tables of the host as tensors on a device."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from minimind.model.device_transfer import HostCopy, to_device

CPU = torch.device("cpu")


@pytest.mark.parametrize(("dtype", "expected"), [(np.int32, torch.int32), (np.int64, torch.int64)])
def test_shape_dtype_and_values_are_kept(dtype, expected):
    tensor = to_device(np.array([[1, 2, 3], [4, 5, 6]], dtype=dtype), CPU)
    assert tensor.dtype == expected
    assert tensor.tolist() == [[1, 2, 3], [4, 5, 6]]


def test_a_cpu_tensor_shares_the_memory_of_the_array():
    array = np.array([1, 2])
    tensor = to_device(array, CPU)
    array[0] = 7
    assert tensor.tolist() == [7, 2]


def test_a_gpu_gets_an_asynchronous_copy_from_pinned_memory(monkeypatch):
    """A copy from memory that is not pinned would make the host wait."""
    calls = []

    class Recorder(torch.Tensor):
        def pin_memory(self):
            calls.append("pin")
            return self

        def to(self, device, non_blocking=False):
            calls.append((device.type, non_blocking))
            return self

    from_numpy = torch.from_numpy
    monkeypatch.setattr(torch, "from_numpy", lambda array: from_numpy(array).as_subclass(Recorder))
    to_device(np.array([1]), torch.device("cuda"))
    assert calls == ["pin", ("cuda", True)]
    to_device(np.array([1]), CPU)
    assert calls[2:] == [("cpu", True)]


def test_a_copy_for_the_host_has_the_values_of_its_time():
    tensor = torch.tensor([[1.5, 2.0]])
    copied = HostCopy(tensor)
    tensor.zero_()
    assert copied.numpy().tolist() == [[1.5, 2.0]]
