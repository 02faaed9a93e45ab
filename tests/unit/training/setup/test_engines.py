"""Building the engines: which kernels a run prepares, by flags and device."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from minimind.config import parse_settings
from minimind.model.configuration import MiniMindConfig
from minimind.ranks.world import World
from minimind.training.setup import engines


class EndOfTestError(Exception):
    """Raised in place of the first step after the kernels."""


def native_calls(monkeypatch, *flags: str, device: str = "cpu") -> list[object]:
    """What is prepared before the policy is built, and whether the heap is installed after it."""
    calls: list[object] = []

    def stop(*_):
        raise EndOfTestError

    world = World(rank=0, local_rank=0, size=1, device=torch.device(device))
    policy = SimpleNamespace(frozen={}, world=world)
    monkeypatch.setattr(engines.native, "prepare", lambda **wanted: calls.append(wanted))
    monkeypatch.setattr(engines.native, "keep_memory", lambda: calls.append("heap"))
    monkeypatch.setattr(engines, "Policy", lambda *_, **__: calls.append("policy") or policy)
    monkeypatch.setattr(engines, "choose_layout", stop)
    source = SimpleNamespace(config=MiniMindConfig())
    sources = {"source": source, "reference_source": source}
    prepared = SimpleNamespace(settings=parse_settings(flags), adapters=None, policy_config=None, **sources)
    nothing = SimpleNamespace(total_steps=1, table=None, tables=[], enter=lambda _: None, tick=None)
    with pytest.raises(EndOfTestError):
        engines.build_engines(prepared, nothing, nothing, world, nothing, nothing)
    return calls


@pytest.mark.parametrize(
    ("flags", "kernels", "heap"),
    [
        ((), True, True),
        (("--kernels", "torch"), False, True),
        (("--keep_memory", "0"), True, False),
        (("--kernels", "torch", "--keep_memory", "0"), False, False),
        (("--dtype", "float32"), False, True),  # there are kernels for bfloat16 only
    ],
)
def test_flags_choose_kernels_and_heap_on_a_cpu(flags, kernels, heap, monkeypatch):
    expected = [{"kernels": kernels, "heap": heap}, "policy", *(["heap"] if heap else [])]
    assert native_calls(monkeypatch, *flags) == expected


def test_a_gpu_prepares_nothing(monkeypatch):
    assert native_calls(monkeypatch, device="cuda") == ["policy"]
