"""Round trips: whatever form weights pass through, they come back bit for bit."""

from __future__ import annotations

import pytest
import torch

from minimind import demo, save_weights
from minimind.conversion import export as export_module
from minimind.conversion.command import export
from minimind.conversion.export import flags_for_pth
from minimind.errors import WeightsError
from minimind.weights.sources import open_weights
from tests.unit.conversion.made import KINDS, form_of, made, own_state


def go(source, to, out, *flags):
    export([str(word) for word in (source, "--to", to, "--out", out, "--check", 0, *flags)])
    return out


@pytest.mark.parametrize("kind", KINDS)
def test_a_round_trip_is_the_identity(kind, tmp_path):
    """MiniMind -> plain -> MiniMind, in shards on the way; and the plain form again, from itself."""
    model = made(kind)
    model.save_pretrained(tmp_path / "start")
    tokenizer = ("--tokenizer_path", demo.TOKENIZER_PATH)
    plain = go(tmp_path / "start", form_of(kind), tmp_path / "plain", "--max_shard_size", "100KB", *tokenizer)
    assert len(list(plain.glob("*.safetensors"))) > 1
    end = open_weights(go(plain, "minimind", tmp_path / "end"), {})
    assert set(end.shapes()) == set(own_state(model))
    for name, tensor in own_state(model).items():
        assert torch.equal(end.read(name), tensor), name
        assert end.read(name).dtype == torch.float32
    # The tokenizer has a padding token, MiniMind's configuration none.
    left_out = ("pad_token_id", "architectures", "dtype", "_name_or_path")
    same = {name: value for name, value in end.config.to_dict().items() if name not in left_out}
    assert same == {k: v for k, v in model.config.to_dict().items() if k in same}
    again = go(plain, form_of(kind), tmp_path / "again")
    assert (again / "config.json").read_text() == (plain / "config.json").read_text()


@pytest.mark.parametrize("kind", ["llama untied, YaRN", "qwen3_moe"])
def test_a_pth_comes_back_as_it_was(kind, tmp_path):
    model = made(kind)
    save_weights(model, tmp_path / "start.pth", torch.float32)
    flags = [] if kind == "qwen3_moe" else ["--num_attention_heads", 4, "--inference_rope_scaling", 1]
    plain = go(
        tmp_path / "start.pth", form_of(kind), tmp_path / "plain", "--tokenizer_path", demo.TOKENIZER_PATH, *flags
    )
    end = go(plain, "pth", tmp_path / "end.pth")
    start, end = (torch.load(path, weights_only=True) for path in (tmp_path / "start.pth", end))
    assert set(start) == set(end)
    assert all(torch.equal(start[name], end[name]) for name in start)


def test_flags_that_a_pth_needs(tmp_path):
    model = made("qwen3_moe top 2, YaRN", rope_theta=5e5)
    model.save_pretrained(tmp_path)
    needed = "--num_experts_per_tok 2 --rope_theta 500000 --inference_rope_scaling 1"
    assert flags_for_pth(open_weights(tmp_path, {})) == needed
    made("qwen3", rope_theta=1234567.0).save_pretrained(tmp_path / "exact")
    assert flags_for_pth(open_weights(tmp_path / "exact", {})) == "--rope_theta 1234567"
    made("qwen3").save_pretrained(tmp_path / "plain")
    assert flags_for_pth(open_weights(tmp_path / "plain", {})) == ""


def test_code_for_trust_remote_code_finds_minimind_s_classes(tmp_path):
    from transformers import AutoModelForCausalLM

    model = made("qwen3_moe")
    model.save_pretrained(tmp_path / "start")
    flags = ("--auto_map", 1, "--tokenizer_path", demo.TOKENIZER_PATH)
    folder = go(tmp_path / "start", "minimind", tmp_path / "out", *flags)
    loaded = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    assert type(loaded).__name__ == "MiniMindForCausalLM"
    assert all(torch.equal(own_state(loaded)[name], tensor) for name, tensor in own_state(model).items())


def test_a_pth_that_computes_something_else_does_not_take_the_place_of_the_old_one(tmp_path, monkeypatch):
    made().save_pretrained(tmp_path / "start")
    out = go(tmp_path / "start", "pth", tmp_path / "end.pth")
    before = out.read_bytes()
    computed = iter([torch.zeros(3), torch.ones(3)])
    monkeypatch.setattr(export_module, "logits_of_source", lambda source, read: next(computed))
    with pytest.raises(WeightsError, match=r"end\.pth: the model that was written computes something else"):
        export([str(tmp_path / "start"), "--to", "pth", "--out", str(out), "--dtype", "float16"])
    assert out.read_bytes() == before
    assert [path.name for path in tmp_path.glob("end*")] == ["end.pth"]
