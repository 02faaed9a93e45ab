"""Which tensors go through shared memory, on one rank; tests/distributed/test_communication.py has several ranks."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from deepspeed.comm import comm

from minimind.engine.patches import shared_memory
from minimind.engine.patches.registry import PatchSelection
from minimind.engine.patches.shared_memory import share_memory


@pytest.fixture
def memory(one_rank, monkeypatch):
    """Collectives of a group of one whose sum in memory doubles a tensor, and the calls that each side got."""
    calls = []

    def torch_side(name):
        return lambda *args, **options: calls.append((name, "torch"))

    backend = SimpleNamespace(
        reduce=torch_side("reduce"),
        all_gather_function=torch_side("all_gather"),
        reduce_scatter_function=torch_side("reduce_scatter"),
        _reduce_op=lambda op: op,
    )
    shared = shared_memory._SharedCollectives(backend, 0, 1)
    shared.install()
    monkeypatch.setattr(shared, "_sum", lambda tensor: (calls.append("memory"), tensor.mul_(2))[1])
    return backend, calls


LARGE = 2**17  # bfloat16 elements of 256 KiB


def test_large_tensors_go_through_memory_and_small_ones_through_torch(memory):
    backend, calls = memory
    backend.reduce(torch.ones(LARGE, dtype=torch.bfloat16), 0)
    backend.reduce(torch.ones(LARGE - 1, dtype=torch.bfloat16), 0)
    assert calls == ["memory", ("reduce", "torch")]


@pytest.mark.parametrize(
    "tensor",
    [
        torch.ones(LARGE, dtype=torch.int64),
        torch.ones(LARGE, dtype=torch.float64),
        torch.ones(LARGE, 2).t(),
    ],
    ids=["int64", "float64", "not contiguous"],
)
def test_other_dtypes_and_strides_go_through_torch(tensor, memory):
    backend, calls = memory
    backend.reduce(tensor, 0)
    assert calls == [("reduce", "torch")]


def test_only_sums_go_through_memory(memory):
    backend, calls = memory
    backend.reduce(torch.ones(LARGE), 0, op=dist.ReduceOp.MAX)
    assert calls == [("reduce", "torch")]


def test_reduce_scatter_needs_its_output_inside_its_input(memory):
    backend, calls = memory
    whole = torch.ones(LARGE)
    backend.reduce_scatter_function(whole, whole)
    backend.reduce_scatter_function(torch.ones(LARGE), whole)
    assert calls == ["memory", ("reduce_scatter", "torch")]


def test_all_gather_copies_the_own_part_before_the_sum(memory):
    backend, calls = memory
    out = torch.zeros(LARGE)
    backend.all_gather_function(out, torch.full((LARGE,), 3.0))
    assert calls == ["memory"]
    assert (out == 6.0).all()


def test_single_rank_shares_nothing_and_removes_its_buffer_file(one_rank, tmp_path, monkeypatch):
    path = tmp_path / "buffer"
    path.touch()
    monkeypatch.setattr(shared_memory, "_buffer_file", lambda rank: path)
    share_memory(0, 1, PatchSelection(report=pytest.fail))
    assert not path.exists()


@pytest.mark.parametrize(("size", "usable"), [(8 + 2 * (2**20 + 2**25), True), (2**20, False), (None, False)])
def test_buffer_of_a_full_disk_is_not_used(size, usable, tmp_path, monkeypatch):
    path = tmp_path / "buffer"
    if size is not None:
        with path.open("wb") as file:
            file.truncate(size)
    monkeypatch.setattr(shared_memory, "_buffer_file", lambda rank: path)
    monkeypatch.setattr(shared_memory.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(comm, "cdb", SimpleNamespace(shm_vector_kernel_level=2))
    monkeypatch.setattr(torch.ops, "deepspeed", SimpleNamespace(inference_all_reduce_=None), raising=False)
    monkeypatch.setenv("LOCAL_SIZE", "2")
    assert shared_memory._is_usable(0, 2) is usable
    monkeypatch.setenv("LOCAL_SIZE", "1")  # the other ranks are on another machine
    assert shared_memory._is_usable(0, 2) is False
