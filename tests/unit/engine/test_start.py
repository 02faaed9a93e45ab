"""Parts of a rank's start that need no process group; tests/distributed starts real ranks."""

from __future__ import annotations

import os
import time
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
from torch.torch_version import TorchVersion

from minimind.engine import start
from minimind.engine.start import (
    bound_device,
    check_compile_locks,
    compiled_ops_folder,
    limit_primitive_cache,
    start_rank,
)
from minimind.errors import ConfigError
from minimind.ranks.status import Peer

LIMITS = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")


def test_primitive_cache_is_limited_unless_the_user_has_set_a_limit(monkeypatch):
    monkeypatch.setenv(LIMITS[0], "7")
    monkeypatch.setenv(LIMITS[1], "")  # registers the variable, so that monkeypatch removes it afterwards
    monkeypatch.delenv(LIMITS[1])
    limit_primitive_cache()
    assert os.environ[LIMITS[0]] == "7"
    assert os.environ[LIMITS[1]] == "128"


def test_folder_of_compiled_ops_is_the_one_that_torch_uses(monkeypatch, tmp_path):
    from torch.utils.cpp_extension import get_default_build_root

    assert compiled_ops_folder({"TORCH_EXTENSIONS_DIR": str(tmp_path)}) == tmp_path
    assert str(compiled_ops_folder({})) == get_default_build_root()


@pytest.fixture
def lock(tmp_path):
    """Makes the lock of an op's compile, of a given age in seconds."""

    def make(op: str, age: float):
        path = tmp_path / "py312_cpu" / op / "lock"
        path.parent.mkdir(parents=True)
        path.touch()
        os.utime(path, (time.time() - age,) * 2)
        return path

    return make


@pytest.mark.parametrize("agreed", [False, True])
@pytest.mark.parametrize("op", ["deepspeed_shm_comm", "cpu_adam"])
def test_old_compile_lock_is_refused_with_its_path_and_age(op, agreed, lock, tmp_path):
    path = lock(op, 600)
    with pytest.raises(ConfigError) as caught:
        check_compile_locks(tmp_path, agreed=agreed)
    assert str(caught.value).startswith(f"{path}: lock of a compile that never ended (10 minutes old)")
    assert caught.value.agreed == agreed


@pytest.mark.parametrize(("op", "age"), [("cpu_adam", 200), ("sparse_attn", 600)])
def test_lock_of_a_running_compile_or_of_an_unused_op_is_accepted(op, age, lock, tmp_path):
    lock(op, age)
    check_compile_locks(tmp_path, agreed=False)


def test_folder_without_compiled_ops_is_accepted(tmp_path):
    check_compile_locks(tmp_path / "missing", agreed=False)


@pytest.fixture
def gpus(monkeypatch):
    """A machine with eight GPUs, as far as the start of a rank asks for them; its calls in their order."""
    calls: list = []
    current = [0]

    def set_device(number: int) -> None:
        calls.append(("set device", number))
        current[0] = number

    accelerator = SimpleNamespace(
        device_name=lambda: "cuda",
        device_count=lambda: 8,
        set_device=set_device,
        current_device_name=lambda: f"cuda:{current[0]}",
        communication_backend_name=lambda: "nccl",
    )
    monkeypatch.setattr(start, "get_accelerator", lambda: accelerator)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: current[0])
    return calls


@pytest.mark.parametrize(
    ("version", "size", "bound"),
    [
        ("2.6.0", 2, "cuda:0"),
        ("2.7.0+cu126", 2, None),
        ("2.7.1+cu126", 2, "cuda:0"),
        ("2.11.0", 2, "cuda:0"),
        ("2.11.0", 1, None),
    ],
)
def test_process_group_is_bound_to_the_gpu_where_torch_can(version, size, bound, gpus, monkeypatch):
    monkeypatch.setattr(torch, "__version__", TorchVersion(version))
    assert bound_device(size) == (None if bound is None else torch.device(bound))


def test_a_rank_uses_the_gpu_of_its_local_number_from_the_start(gpus, monkeypatch):
    """Rank 3 of 4 on the second of two machines with eight GPUs: GPU 1. Torch would guess GPU 3."""
    for name, value in {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(start, "rank_variables", lambda environ: {})
    peers = {
        rank: Peer(
            local_rank=rank % 2, pid=rank, host="ab"[rank // 2], machine="ab"[rank // 2], device="cuda", devices=8
        )
        for rank in range(4)
    }
    monkeypatch.setattr(start, "join", lambda timeout, device, devices: (3, object(), peers))
    monkeypatch.setattr(start, "connect", lambda timeout: None)
    monkeypatch.setattr(start, "Watch", Mock)
    monkeypatch.setattr(start.dist, "PrefixStore", lambda prefix, store: store)
    monkeypatch.setattr(
        start.dist, "init_process_group", lambda backend, **options: gpus.append((backend, options["device_id"]))
    )
    monkeypatch.setattr(start.deepspeed, "init_distributed", lambda **options: gpus.append("DeepSpeed"))
    monkeypatch.setattr(start, "barrier", lambda: gpus.append("barrier"))
    started = start_rank()
    assert gpus == [("set device", 1), ("nccl", torch.device("cuda:1")), "DeepSpeed", "barrier"]
    assert started.world.device == torch.device("cuda:1")
