"""What a run says before it allocates anything: that its memory may not be enough, and nothing when it is."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest
import torch
from transformers import MambaConfig

from minimind.config import parse_settings
from minimind.model.configuration import MiniMindConfig
from minimind.plan import check
from minimind.plan.options import DS_CONFIGS, read_zero
from minimind.ranks.process import World
from minimind.training.startup_report import announce_run
from minimind.weights.empty import empty_model, tensor_shapes


@pytest.fixture
def prepared():
    """A run of a billion parameters, as far as it is announced."""
    config = MiniMindConfig(hidden_size=2048, num_hidden_layers=24)
    shapes = tensor_shapes(empty_model(config))
    return SimpleNamespace(
        settings=parse_settings(["--deepspeed", "ds_configs/zero2.json"]),
        is_demo=False,
        source=SimpleNamespace(config=config, origin="full_sft_2048.pth", shapes=lambda: shapes),
        policy_config=SimpleNamespace(stage=2, values=read_zero(DS_CONFIGS / "zero2.json")),
        reference_config=SimpleNamespace(values=read_zero(DS_CONFIGS / "reference.json")),
    )


def announced(prepared, monkeypatch, free: int, rank: int = 0) -> str:
    monkeypatch.setattr(check, "free_memory", lambda: free)
    lines = []
    world = World(rank=rank, local_rank=rank, size=2, device=torch.device("cpu"), hosts=("here", "here"))
    announce_run(prepared, SimpleNamespace(say=lines.append), world)
    return "\n".join(lines)


def test_short_memory_is_said_with_numbers_and_a_remedy(prepared, monkeypatch):
    told = announced(prepared, monkeypatch, free=40 * 2**30)
    # Two ranks share what is free. The place of float32 gradients takes 2.0: 4 bytes of 1.08 billion, halved.
    assert "WARNING: by the plan a rank needs up to 30.4 GiB" in told
    assert "and has 20.0 GiB of free memory" in told
    assert "--deepspeed ds_configs/zero2.json --gradient_checkpointing 1 would fit" in told


def test_enough_memory_is_not_mentioned(prepared, monkeypatch):
    assert "WARNING" not in announced(prepared, monkeypatch, free=2**40)


def test_a_model_that_cannot_be_planned_is_trained_without_the_check(prepared, monkeypatch):
    prepared.source.config = MambaConfig()
    last = announced(prepared, monkeypatch, free=2**30).splitlines()[-1]
    assert last == (
        "  whether memory is enough is not checked: a mamba model cannot be planned: no num_attention_heads in its "
        "configuration"
    )


@pytest.mark.parametrize(("device", "told"), [("cpu", False), ("nvme", True)])
def test_a_run_without_checkpoints_says_so(device, told, prepared, monkeypatch):
    prepared.policy_config.values = read_zero(DS_CONFIGS / "zero3_nvme.json")
    for name in ("offload_optimizer", "offload_param"):
        prepared.policy_config.values["zero_optimization"][name]["device"] = device
    assert ("NO CHECKPOINTS" in announced(prepared, monkeypatch, free=2**40)) == told


def test_the_check_costs_next_to_nothing(prepared, monkeypatch):
    start = time.process_time()
    announced(prepared, monkeypatch, free=2**30)
    assert time.process_time() - start < 0.05
