"""Loading and writing weights: a load changes all tensors or none, and a written file reads back the same."""

from __future__ import annotations

import os

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from minimind import MiniMindConfig, MiniMindForCausalLM, load_weights, save_weights
from minimind.errors import WeightsError
from minimind.weights.construction import tensor_shapes
from minimind.weights.io import save_huggingface, save_minimind
from minimind.weights.names import EMBEDDING, HEAD, minimind_state
from tests.unit.weights.conftest import llama, minimind

IDS = torch.arange(3, 14)[None]


def same_state(one, other) -> bool:
    states = one.state_dict(), other.state_dict()
    return states[0].keys() == states[1].keys() and all(torch.equal(t, states[1][n]) for n, t in states[0].items())


def test_a_written_file_loads_into_another_model(kind, tmp_path):
    model, other = minimind(kind), minimind(kind, seed=1)
    assert not same_state(model, other)
    save_weights(model, tmp_path / "model.pth", torch.float32)
    load_weights(other, tmp_path / "model.pth")
    assert same_state(model, other)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_file_has_the_requested_dtype_and_the_model_keeps_its_own(dtype, tmp_path):
    model = minimind("minimind2")
    save_weights(model, tmp_path / "model.pth", dtype)
    assert {t.dtype for t in torch.load(tmp_path / "model.pth", weights_only=True).values()} == {dtype}
    other = minimind("minimind2", seed=1)
    load_weights(other, tmp_path / "model.pth")
    assert {p.dtype for p in other.parameters()} == {torch.float32}
    assert torch.equal(other.model.norm.weight, model.model.norm.weight.to(dtype).float())


def test_default_dtype_is_float16(tmp_path):
    save_weights(minimind("minimind2"), tmp_path / "model.pth")
    assert {t.dtype for t in torch.load(tmp_path / "model.pth", weights_only=True).values()} == {torch.float16}


def test_tied_head_is_written_even_if_the_state_dict_lacks_it(tmp_path):
    model = minimind("minimind2")
    state = {name: model.state_dict()[name] for name in tensor_shapes(model)}
    assert HEAD not in state
    save_minimind(state, tmp_path / "model.pth", torch.float32)
    written = torch.load(tmp_path / "model.pth", weights_only=True)
    assert torch.equal(written[HEAD], written[EMBEDDING])


def test_untied_head_is_written_unchanged(tmp_path):
    model = minimind("minimind2", tie_word_embeddings=False)
    save_weights(model, tmp_path / "model.pth", torch.float32)
    written = torch.load(tmp_path / "model.pth", weights_only=True)
    assert torch.equal(written[HEAD], model.lm_head.weight)
    assert not torch.equal(written[HEAD], written[EMBEDDING])


def test_mismatched_file_changes_no_tensor(tmp_path):
    """All other tensors of the file fit: only the last one is missing."""
    state = dict(minimind_state(minimind("minimind2", seed=1).state_dict()))
    del state["model.norm.weight"]
    torch.save(state, tmp_path / "model.pth")
    model = minimind("minimind2")
    with pytest.raises(WeightsError, match=r"missing: model\.norm\.weight \(32,\)"):
        load_weights(model, tmp_path / "model.pth")
    assert same_state(model, minimind("minimind2"))


def test_expert_with_a_wrong_shape_changes_no_tensor(tmp_path):
    state = {name: t.clone() for name, t in minimind_state(minimind("minimind2_moe", seed=1).state_dict()).items()}
    state["model.layers.1.mlp.experts.3.up_proj.weight"] = torch.ones(7, 32)
    torch.save(state, tmp_path / "model.pth")
    model = minimind("minimind2_moe")
    with pytest.raises(WeightsError, match=r"model\.layers\.1\.mlp\.experts"):
        load_weights(model, tmp_path / "model.pth")
    assert same_state(model, minimind("minimind2_moe"))


def test_file_of_another_model_size_lists_all_differences(tmp_path):
    save_weights(minimind("minimind2", num_hidden_layers=3, vocab_size=62), tmp_path / "model.pth")
    with pytest.raises(WeightsError) as caught:
        load_weights(minimind("minimind2"), tmp_path / "model.pth")
    message = str(caught.value)
    assert "unexpected: model.layers.2.self_attn.q_proj.weight (32, 32)" in message
    assert "wrong shape: model.embed_tokens.weight is (62, 32), the model has (61, 32)" in message


def test_moe_weights_do_not_load_into_a_dense_model(tmp_path):
    save_weights(minimind("minimind2_moe"), tmp_path / "model.pth")
    with pytest.raises(WeightsError, match=r"missing: model\.layers\.0\.mlp\.gate_proj\.weight"):
        load_weights(minimind("minimind2"), tmp_path / "model.pth")


def test_writing_replaces_the_old_file_and_leaves_no_partial_file(tmp_path):
    path = tmp_path / "new" / "model.pth"
    for seed in (0, 1):
        save_weights(minimind("minimind2", seed=seed), path, torch.float32)
        assert [entry.name for entry in path.parent.iterdir()] == ["model.pth"]
    model = minimind("minimind2")
    load_weights(model, path)
    assert same_state(model, minimind("minimind2", seed=1))


def test_unwritable_path_is_reported(tmp_path):
    (tmp_path / "model.pth").mkdir()
    with pytest.raises(WeightsError, match=r"model\.pth: cannot be written"):
        save_weights(minimind("minimind2"), tmp_path / "model.pth")


def test_file_in_place_of_the_folder_is_reported(tmp_path):
    (tmp_path / "out").touch()
    with pytest.raises(WeightsError, match="cannot be written"):
        save_weights(minimind("minimind2"), tmp_path / "out" / "model.pth")


@pytest.mark.parametrize("tied", [True, False])
def test_llama_folder_round_trip(tied, tokenizer, tmp_path):
    model, folder = llama(tied), tmp_path / "folder"
    save_huggingface(model.config, model.state_dict(), folder, tokenizer, torch.float32)
    again = AutoModelForCausalLM.from_pretrained(folder).eval()
    assert same_state(model, again)
    torch.testing.assert_close(again(IDS).logits, model(IDS).logits, rtol=0, atol=1e-6)


def test_folder_has_a_tokenizer_and_replaces_an_old_folder(tokenizer, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "stale.txt").touch()
    model = minimind("minimind3_moe")
    save_huggingface(model.config, model.state_dict(), folder, tokenizer, torch.bfloat16)
    names = {entry.name for entry in folder.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= names
    assert "stale.txt" not in names
    assert [entry.name for entry in tmp_path.iterdir()] == ["folder"]
    messages = [{"role": "user", "content": "你好"}]
    saved = AutoTokenizer.from_pretrained(folder)
    assert saved.apply_chat_template(messages, tokenize=False) == tokenizer.apply_chat_template(
        messages, tokenize=False
    )
    again = AutoModelForCausalLM.from_pretrained(folder)
    assert {p.dtype for p in again.parameters()} == {torch.bfloat16}


def test_saving_does_not_change_the_saved_model(tokenizer, tmp_path):
    """The configuration of the running model must not get the dtype of the file."""
    model = minimind("minimind2")
    before = model.config.dtype
    save_huggingface(model.config, model.state_dict(), tmp_path / "folder", tokenizer, torch.bfloat16)
    assert model.config.dtype == before


def test_written_files_are_flushed_before_old_ones_go(tmp_path, monkeypatch):
    """A power cut after the rename must not leave an empty file under the name of a good one."""
    events: list[str] = []
    real_sync, real_replace = os.fsync, os.replace

    def sync(descriptor):
        events.append(f"sync {os.path.basename(os.readlink(f'/proc/self/fd/{descriptor}'))}")
        real_sync(descriptor)

    def replace(old, new):
        events.append(f"rename to {os.path.basename(new)}")
        real_replace(old, new)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "replace", replace)
    model = MiniMindForCausalLM(
        MiniMindConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=4, vocab_size=61)
    )
    save_weights(model, tmp_path / "w.pth")
    assert events == ["sync w.pth.partial", "rename to w.pth", f"sync {tmp_path.name}"]
