"""The attention backend of a run: requested, kept from a checkpoint, or the fastest, and what the run prints."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import DeepseekV3Config, GPT2Config, LlamaConfig, MistralConfig

from minimind.checkpoints.find import Checkpoint
from minimind.checkpoints.manifest import Manifest
from minimind.config import parse_settings
from minimind.errors import ConfigError
from minimind.model.backend_choice import AttentionShape, BackendChoice
from minimind.model.configuration import MiniMindConfig
from minimind.ranks.watch import Watch
from minimind.ranks.world import World
from minimind.training.setup import attention
from minimind.training.setup.attention import attention_shape, choose_attention_backend
from minimind.training.setup.prepare import Prepared

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def choose(monkeypatch):
    """Name and origin of the backend that a run chooses, and what it prints."""
    monkeypatch.setattr(attention, "_measured_pack", lambda data: ((4, 3, 2),))
    monkeypatch.setattr(attention, "from_main", lambda world, action: action())

    def run(*flags, before=None, device=CPU, model=None, size=1):
        manifest = Manifest(step=1, stream={}, identity={}, batch={}, sharding={}, files={}, attention=before or "")
        prepared = Prepared(
            settings=parse_settings(flags),
            is_demo=False,
            checkpoint=None if before is None else Checkpoint(path=Path("x"), manifest=manifest, damaged={}),
            objective=None,
            source=SimpleNamespace(config=model or MiniMindConfig()),
            tokenizer=None,
            policy_config=None,
            reference_config=None,
        )
        world, lines = World(rank=0, local_rank=0, size=size, device=device), []
        done = choose_attention_backend(prepared, world, Watch(), None, SimpleNamespace(say=lines.append)).settings
        if device == GPU and lines and "--attention" not in flags:
            assert lines.pop(0) == "  trying attention backends; compiling one may take a minute"
        return done.config.engine.attention, done.origins["attention"], "\n".join(lines)

    return run


@pytest.fixture
def gpu(monkeypatch):
    """A GPU on which flex was measured to be fastest, and the backends that do not agree there."""
    bad = {}
    chosen = BackendChoice(name="flex", lines=("attention over packs: flex (measured)", "  varlen is left out: why"))
    monkeypatch.setattr(attention, "choose_backend", lambda shape, segments: chosen)
    monkeypatch.setattr(attention, "check_backend", lambda shape, name, segments: bad.get(name))
    return bad


def test_a_cpu_has_one_backend_for_each_dtype(choose):
    assert choose() == ("native", "default", "  attention over packs: the project's CPU kernel")
    printed = "  attention over packs: torch's SDPA, segment by segment"
    assert choose("--dtype", "float32") == ("sdpa", "default", printed)


def test_a_gpu_takes_the_fastest(choose, gpu):
    printed = "  attention over packs: flex (measured)\n    varlen is left out: why"
    assert choose(device=GPU) == ("flex", "measured", printed)


def test_a_requested_backend_is_taken(choose, gpu):
    printed = "  attention over packs: sdpa, from --attention"
    assert choose("--attention", "sdpa") == ("sdpa", "flag", printed)
    printed += "; before the checkpoint it was varlen"
    assert choose("--attention", "sdpa", before="varlen", device=GPU) == ("sdpa", "flag", printed)


def test_a_requested_backend_that_does_not_agree_is_an_error(choose, gpu):
    gpu["flex"] = "RuntimeError: no Triton"
    with pytest.raises(ConfigError, match=r"^--attention flex: RuntimeError: no Triton; use auto or sdpa$"):
        choose("--attention", "flex", device=GPU)


def test_a_resumed_run_keeps_its_backend(choose, gpu):
    assert choose(before="varlen", device=GPU) == (
        "varlen",
        "checkpoint",
        "  attention over packs: varlen, as before the checkpoint",
    )


def test_backend_from_checkpoint_is_remeasured_when_it_fails_here(choose, gpu):
    gpu["varlen"] = "flash attention is not there"
    name, origin, printed = choose(before="varlen", device=GPU)
    assert (name, origin) == ("flex", "measured")
    assert printed.splitlines()[:2] == [
        "  attention over packs was varlen before the checkpoint, which is not possible here: flash attention is not "
        "there",
        "  attention over packs: flex (measured)",
    ]


def test_a_run_resumed_on_a_cpu_takes_the_cpu_backend(choose):
    name, origin, printed = choose(before="flex")
    assert (name, origin) == ("native", "default")
    assert printed.splitlines() == [
        "  attention over packs was flex before the checkpoint, which is not possible here: torch has gradients of "
        "FlexAttention only on a GPU",
        "  attention over packs: the project's CPU kernel",
    ]


def test_a_manifest_without_a_backend_does_not_bind_the_run(choose, gpu):
    assert choose(before="", device=GPU)[:2] == ("flex", "measured")


def test_nothing_is_measured_if_rows_will_be_padded(choose, monkeypatch):
    monkeypatch.setattr(attention, "choose_backend", lambda *_: pytest.fail("measured"))
    model = MistralConfig(sliding_window=16, num_hidden_layers=1)
    assert choose(device=GPU, model=model) == ("sdpa", "default", "")


@pytest.mark.parametrize(
    ("model", "heads", "kv_heads", "head_dim", "dropout"),
    [
        (MiniMindConfig(hidden_size=64, num_attention_heads=8), 8, 2, 8, 0.0),
        (MiniMindConfig(generation=3, dropout=0.2), 8, 4, 64, 0.2),
        (LlamaConfig(num_attention_heads=8, num_key_value_heads=4, head_dim=16, attention_dropout=0.1), 8, 4, 16, 0.1),
        (LlamaConfig(hidden_size=96, num_attention_heads=6), 6, 6, 16, 0.0),
        (GPT2Config(n_embd=48, n_head=4, attn_pdrop=0.3), 4, 4, 12, 0.3),
    ],
)
def test_attention_sizes_come_from_the_configuration(model, heads, kv_heads, head_dim, dropout):
    expected = AttentionShape(
        heads=heads, kv_heads=kv_heads, head_dim=head_dim, dtype=torch.bfloat16, device=CPU, dropout=dropout
    )
    assert attention_shape(model, torch.bfloat16, CPU, dropout=True) == expected
    # A run turns dropout off unless it is asked to keep it.
    assert attention_shape(model, torch.bfloat16, CPU) == dataclasses.replace(expected, dropout=0.0)


def test_latent_attention_has_another_size_for_values():
    """The head_dim of such a model is only the rotated part of its keys."""
    shape = attention_shape(
        DeepseekV3Config(qk_nope_head_dim=32, qk_rope_head_dim=16, v_head_dim=24), torch.bfloat16, CPU
    )
    assert (shape.head_dim, shape.value_dim) == (48, 24)


def test_the_first_micro_batch_is_measured_in_whole_pairs(monkeypatch):
    segments = ((9, 1, 2), (3, 4, 5), (2, 2, 2), (1, 1, 1))
    data = SimpleNamespace(first_micro_batch=lambda: segments)
    monkeypatch.setattr(attention, "pack", lambda pairs: SimpleNamespace(segments=tuple(pairs)))
    assert attention._measured_pack(data) == segments
    monkeypatch.setattr(attention, "_MEASURED_TOKENS", 25)
    assert attention._measured_pack(data) == segments[:2]
    monkeypatch.setattr(attention, "_MEASURED_TOKENS", 8)
    assert attention._measured_pack(data) == ((6, 0, 1),)


def test_other_ranks_verify_the_choice_of_rank_0(choose, gpu, monkeypatch):
    tried = []
    monkeypatch.setattr(attention, "agree", lambda world, action, runs: tried.append((runs, action())))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    assert choose(device=GPU, size=4)[0] == "flex"
    assert tried == [(False, None)]
    gpu["flex"] = "no Triton"
    with pytest.raises(ConfigError, match="--attention flex: no Triton"):
        choose(device=GPU, size=4)
