"""Messages before the first step: a warning if memory may not suffice, and none if it does."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from transformers import GPT2Config, MambaConfig

from minimind.config import parse_settings
from minimind.model.configuration import MiniMindConfig
from minimind.plan import check
from minimind.plan.options import DS_CONFIGS, read_zero
from minimind.ranks.world import World
from minimind.training.startup_report import report_settings
from minimind.weights.construction import empty_model, tensor_shapes


@pytest.fixture
def prepared():
    """A run of a billion parameters, as far as its report needs it."""
    config = MiniMindConfig(hidden_size=2048, num_hidden_layers=24)
    shapes = tensor_shapes(empty_model(config))
    return SimpleNamespace(
        settings=parse_settings(["--deepspeed", "ds_configs/zero2.json"]),
        is_demo=False,
        source=SimpleNamespace(config=config, origin="full_sft_2048.pth", shapes=lambda: shapes),
        policy_config=SimpleNamespace(stage=2, values=read_zero(DS_CONFIGS / "zero2.json")),
        reference_config=SimpleNamespace(values=read_zero(DS_CONFIGS / "reference.json")),
    )


def report(prepared, monkeypatch, free: int, rank: int = 0) -> str:
    monkeypatch.setattr(check, "free_memory", lambda: free)
    lines = []
    world = World(rank=rank, local_rank=rank, size=2, device=torch.device("cpu"), hosts=("here", "here"))
    report_settings(prepared, SimpleNamespace(say=lines.append), world)
    return "\n".join(lines)


def test_too_little_memory_is_a_warning_with_numbers_and_a_remedy(prepared, monkeypatch):
    printed = report(prepared, monkeypatch, free=40 * 2**30)
    # Two ranks share the free memory. The buffer of float32 gradients takes 2.0 GiB: 4 bytes x 1.08 billion / 2.
    assert "WARNING: the run may run out of memory: a rank needs up to 30.4 GiB" in printed
    assert "and free main memory has 20.0 GiB" in printed
    assert "--deepspeed ds_configs/zero2.json --gradient_checkpointing 1 fits" in printed


def test_enough_memory_is_no_warning(prepared, monkeypatch):
    assert "WARNING" not in report(prepared, monkeypatch, free=2**40)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ((), "  dropout of the model is turned off (--dropout 1 keeps it): attn_pdrop 0.1, resid_pdrop 0.25"),
        (("--dropout", "1"), "  dropout of the model is kept: attn_pdrop 0.1, resid_pdrop 0.25"),
    ],
)
def test_dropout_of_the_model_is_printed(prepared, monkeypatch, flags, expected):
    prepared.source.config = GPT2Config(attn_pdrop=0.1, resid_pdrop=0.25, embd_pdrop=0.0, summary_first_dropout=0.5)
    prepared.settings = parse_settings(["--deepspeed", "ds_configs/zero2.json", *flags])
    assert expected in report(prepared, monkeypatch, free=2**40).splitlines()


def test_a_model_without_dropout_prints_nothing_about_it(prepared, monkeypatch):
    assert "dropout of the model" not in report(prepared, monkeypatch, free=2**40)


def test_a_model_that_cannot_be_planned_is_not_checked(prepared, monkeypatch):
    prepared.source.config = MambaConfig()
    last = report(prepared, monkeypatch, free=2**30).splitlines()[-1]
    assert last == (
        "  whether memory is enough is not checked: cannot plan a mamba model: its configuration has no "
        "num_attention_heads"
    )


@pytest.mark.parametrize(("device", "printed"), [("cpu", False), ("nvme", True)])
def test_a_run_without_checkpoints_prints_so(device, printed, prepared, monkeypatch):
    prepared.policy_config.values = read_zero(DS_CONFIGS / "zero3_nvme.json")
    for name in ("offload_optimizer", "offload_param"):
        prepared.policy_config.values["zero_optimization"][name]["device"] = device
    assert ("NO CHECKPOINTS" in report(prepared, monkeypatch, free=2**40)) == printed
