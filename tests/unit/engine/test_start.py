"""Parts of a rank's start that need no process group; tests/distributed starts real ranks."""

from __future__ import annotations

import os
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
from torch.torch_version import TorchVersion

from minimind.engine import start
from minimind.engine.start import bound_device, limit_primitive_cache, start_rank
from minimind.ranks.status import Peer

LIMITS = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")


def test_primitive_cache_is_limited_unless_the_user_has_set_a_limit(monkeypatch):
    monkeypatch.setenv(LIMITS[0], "7")
    monkeypatch.setenv(LIMITS[1], "")  # registers the variable, so that monkeypatch removes it afterwards
    monkeypatch.delenv(LIMITS[1])
    limit_primitive_cache()
    assert os.environ[LIMITS[0]] == "7"
    assert os.environ[LIMITS[1]] == "128"


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
    monkeypatch.setattr(start, "guard_compiles", lambda patches: None)
    monkeypatch.setattr(start, "compile_late", lambda patches: None)
    monkeypatch.setattr(start.dist, "PrefixStore", lambda prefix, store: store)
    monkeypatch.setattr(
        start.dist, "init_process_group", lambda backend, **options: gpus.append((backend, options["device_id"]))
    )
    monkeypatch.setattr(start.deepspeed, "init_distributed", lambda **options: gpus.append("DeepSpeed"))
    monkeypatch.setattr(start, "barrier", lambda: gpus.append("barrier"))
    started = start_rank()
    assert gpus == [("set device", 1), ("nccl", torch.device("cuda:1")), "DeepSpeed", "barrier"]
    assert started.world.device == torch.device("cuda:1")
