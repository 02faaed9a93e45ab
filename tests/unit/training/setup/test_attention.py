"""What a run says and takes: what was asked for, what there was before a checkpoint, or what there is."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import DeepseekV3Config, GPT2Config, LlamaConfig, MistralConfig

from minimind.checkpoints.find import Checkpoint
from minimind.checkpoints.manifest import Manifest
from minimind.config import parse_settings
from minimind.data.sampler import PairSampler
from minimind.errors import ConfigError
from minimind.model.backends import AttentionShape, Choice
from minimind.model.configuration import MiniMindConfig
from minimind.ranks.process import World
from minimind.training.run import _choose_layout
from minimind.training.setup import attention
from minimind.training.setup.attention import attention_shape, settle_attention
from minimind.training.setup.prepare import Prepared

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def settled(monkeypatch):
    """The attention of a run and its origin, and what it said."""
    monkeypatch.setattr(attention, "_measured_pack", lambda stream, table: ((4, 3, 2),))
    monkeypatch.setattr(attention.process, "from_main", lambda world, action: action())

    def settle(*flags, before=None, device=CPU, model=None, size=1):
        manifest = Manifest(step=1, stream={}, identity={}, batch={}, layout={}, files={}, attention=before or "")
        prepared = Prepared(
            settings=parse_settings(flags),
            is_demo=False,
            checkpoint=None if before is None else Checkpoint(path=Path("x"), manifest=manifest, damaged={}),
            source=SimpleNamespace(config=model or MiniMindConfig()),
            tokenizer=None,
            policy_config=None,
            reference_config=None,
        )
        world, lines = World(rank=0, local_rank=0, size=size, device=device), []
        done = settle_attention(prepared, world, None, None, SimpleNamespace(say=lines.append)).settings
        if device == GPU and lines and "--attention" not in flags:
            assert lines.pop(0) == "  trying what can attend over packs; where it is compiled that may take a minute"
        return done.config.engine.attention, done.origins["attention"], "\n".join(lines)

    return settle


@pytest.fixture
def gpu(monkeypatch):
    """A GPU on which flex was measured to be fastest, and the backends that do not agree there."""
    bad = {}
    chosen = Choice(name="flex", lines=("attention over packs: flex (measured)", "  varlen is left out: why"))
    monkeypatch.setattr(attention, "choose_backend", lambda shape, segments: chosen)
    monkeypatch.setattr(attention, "verify", lambda shape, name, segments: bad.get(name))
    return bad


def test_on_a_cpu_there_is_nothing_to_choose(settled):
    assert settled() == ("native", "default", "  attention over packs: the CPU's own kernel")
    told = "  attention over packs: torch's SDPA, segment by segment"
    assert settled("--dtype", "float32") == ("sdpa", "default", told)
    assert settled("--kernels", "torch") == ("sdpa", "default", told)


def test_a_checkpoint_of_the_cpus_kernel_is_resumed_without_it_under_kernels_torch(settled):
    assert settled("--kernels", "torch", before="native") == (
        "sdpa",
        "default",
        "  attention over packs was native before the checkpoint, and cannot be here: --kernels torch does not use it\n"
        "  attention over packs: torch's SDPA, segment by segment",
    )


def test_on_a_gpu_it_is_measured(settled, gpu):
    told = "  attention over packs: flex (measured)\n    varlen is left out: why"
    assert settled(device=GPU) == ("flex", "measured", told)


def test_what_is_asked_for_is_taken(settled, gpu):
    told = "  attention over packs: sdpa, as --attention says"
    assert settled("--attention", "sdpa") == ("sdpa", "flag", told)
    told += "; before the checkpoint it was varlen"
    assert settled("--attention", "sdpa", before="varlen", device=GPU) == ("sdpa", "flag", told)


def test_what_is_asked_for_and_does_not_agree_is_an_error(settled, gpu):
    gpu["flex"] = "RuntimeError: no Triton"
    with pytest.raises(ConfigError, match=r"^--attention flex: RuntimeError: no Triton; use auto or sdpa$"):
        settled("--attention", "flex", device=GPU)


def test_a_run_that_goes_on_keeps_what_it_had(settled, gpu):
    assert settled(before="varlen", device=GPU) == (
        "varlen",
        "checkpoint",
        "  attention over packs: varlen, as before the checkpoint",
    )


def test_what_it_had_and_does_not_agree_here_is_chosen_anew(settled, gpu):
    gpu["varlen"] = "flash attention is not there"
    name, origin, told = settled(before="varlen", device=GPU)
    assert (name, origin) == ("flex", "measured")
    assert told.splitlines()[:2] == [
        "  attention over packs was varlen before the checkpoint, and cannot be here: flash attention is not there",
        "  attention over packs: flex (measured)",
    ]


def test_from_a_gpu_to_a_cpu(settled):
    name, origin, told = settled(before="flex")
    assert (name, origin) == ("native", "default")
    assert told.splitlines() == [
        "  attention over packs was flex before the checkpoint, and cannot be here: torch trains through "
        "FlexAttention on a GPU only",
        "  attention over packs: the CPU's own kernel",
    ]


def test_a_manifest_that_does_not_say_is_a_fresh_start(settled, gpu):
    assert settled(before="", device=GPU)[:2] == ("flex", "measured")


def test_rows_that_will_be_padded_are_not_measured(settled, monkeypatch):
    monkeypatch.setattr(attention, "choose_backend", lambda *_: pytest.fail("measured"))
    model = MistralConfig(sliding_window=16, num_hidden_layers=1)
    assert settled(device=GPU, model=model) == ("sdpa", "default", "")


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
def test_what_a_model_asks_for_is_in_its_configuration(model, heads, kv_heads, head_dim, dropout):
    assert attention_shape(model, torch.bfloat16, CPU) == AttentionShape(
        heads=heads, kv_heads=kv_heads, head_dim=head_dim, dtype=torch.bfloat16, device=CPU, dropout=dropout
    )


def test_latent_attention_has_other_channels_for_values():
    """What such a model calls head_dim is the rotated part of its keys."""
    shape = attention_shape(
        DeepseekV3Config(qk_nope_head_dim=32, qk_rope_head_dim=16, v_head_dim=24), torch.bfloat16, CPU
    )
    assert (shape.head_dim, shape.value_dim) == (48, 24)


def test_it_is_measured_with_the_first_micro_batch_in_whole_pairs(monkeypatch):
    stream = PairSampler(
        num_pairs=4, epochs=1, micro_batch_size=4, accumulation_steps=1, world_size=1, shuffle=False, seed=0
    )
    segments = ((9, 1, 2), (3, 4, 5), (2, 2, 2), (1, 1, 1))
    monkeypatch.setattr(attention, "pack", lambda pairs: SimpleNamespace(segments=tuple(pairs)))
    assert attention._measured_pack(stream, segments) == segments
    monkeypatch.setattr(attention, "_MEASURED_TOKENS", 25)
    assert attention._measured_pack(stream, segments) == segments[:2]
    monkeypatch.setattr(attention, "_MEASURED_TOKENS", 8)
    assert attention._measured_pack(stream, segments) == ((6, 0, 1),)


def test_the_other_ranks_try_what_the_first_has_chosen(settled, gpu, monkeypatch):
    tried = []
    monkeypatch.setattr(attention.process, "agree", lambda world, action, runs: tried.append((runs, action())))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    assert settled(device=GPU, size=4)[0] == "flex"
    assert tried == [(False, None)]
    gpu["flex"] = "no Triton"
    with pytest.raises(ConfigError, match="--attention flex: no Triton"):
        settled(device=GPU, size=4)


@pytest.mark.parametrize(
    ("flags", "error"), [(("--attention", "flex"), True), (("--attention", "sdpa"), False), ((), False)]
)
def test_padded_rows_cannot_have_what_is_for_packs(flags, error):
    tokenizer = SimpleNamespace(pad_token_id=0)
    model = MistralConfig(sliding_window=16, num_hidden_layers=1)
    prepared = SimpleNamespace(
        settings=parse_settings(flags), tokenizer=tokenizer, source=SimpleNamespace(config=model)
    )
    said = []
    if error:
        with pytest.raises(ConfigError, match=r"^--attention flex is for packs, and rows must be padded .*window"):
            _choose_layout(prepared, None, None, None)
    else:
        _choose_layout(prepared, None, None, SimpleNamespace(say=said.append))
        assert said == ["  rows are padded, not packed: it attends over a sliding window of 16 tokens"]
