"""Which tensors go through shared memory, on one rank; tests/distributed/test_communication.py has several ranks."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from minimind.engine.patches import shared_memory
from minimind.engine.patches.registry import PatchSelection
from minimind.engine.patches.shared_memory import reserve_memory
from minimind.errors import ConfigError


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


@pytest.fixture
def around(monkeypatch):
    """What `reserve_memory` calls: whether the buffers fit, and whether DeepSpeed can be kept from making them."""
    calls = []

    def make(fits=True, skips=True):
        def reservation(rank, size):
            calls.append("reserve")
            return SimpleNamespace(problem=None if fits else "no room")

        monkeypatch.setattr(shared_memory, "Reservation", reservation)
        monkeypatch.setattr(shared_memory, "skip_buffers", lambda patches: (calls.append("skip"), skips)[1])
        monkeypatch.setattr(shared_memory.platform, "machine", lambda: "x86_64")
        monkeypatch.setenv("LOCAL_SIZE", "2")
        return calls

    return make


def test_memory_is_reserved_for_ranks_of_one_machine(around):
    calls = around()
    assert reserve_memory(0, 2, PatchSelection(report=pytest.fail)).problem is None
    assert calls == ["reserve"]


@pytest.mark.parametrize(
    ("size", "local_size", "machine"),
    [(1, "1", "x86_64"), (2, "1", "x86_64"), (2, None, "x86_64"), (2, "2", "aarch64")],
    ids=["one rank", "two machines", "a launcher that does not say", "another processor"],
)
def test_deepspeed_is_kept_from_memory_that_the_ranks_cannot_share(size, local_size, machine, around, monkeypatch):
    calls = around()
    monkeypatch.setattr(shared_memory.platform, "machine", lambda: machine)
    if local_size is None:
        monkeypatch.delenv("LOCAL_SIZE")
    else:
        monkeypatch.setenv("LOCAL_SIZE", local_size)
    assert reserve_memory(0, size, PatchSelection(report=pytest.fail)) is None
    assert calls == ["skip"]


def test_memory_that_does_not_fit_is_said_and_left_out(around):
    calls, said = around(fits=False), []
    assert reserve_memory(0, 2, PatchSelection(report=said.append)) is None
    assert calls == ["reserve", "skip"]
    assert said == ["  the ranks communicate through sockets, which is slower: no room"]


def test_memory_that_does_not_fit_ends_the_run_if_deepspeed_would_write_it(around):
    around(fits=False, skips=False)
    with pytest.raises(ConfigError, match="no room"):
        reserve_memory(0, 2, PatchSelection(report=pytest.fail))


@pytest.mark.parametrize(("loaded", "level", "usable"), [(True, 2, True), (True, 1, False), (False, 2, False)])
def test_sum_needs_code_for_the_processor(loaded, level, usable, monkeypatch):
    ops = SimpleNamespace(**({"inference_all_reduce_": None} if loaded else {}))
    monkeypatch.setattr(torch.ops, "deepspeed", ops, raising=False)
    assert shared_memory._is_usable(SimpleNamespace(shm_vector_kernel_level=level)) is usable
