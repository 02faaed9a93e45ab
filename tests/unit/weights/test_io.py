"""Weights into models and out to files: all or nothing, and what is written reads back."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GemmaConfig, GPT2Config, OPTConfig

from minimind import load_weights, save_weights
from minimind.errors import WeightsError
from minimind.weights.empty import plain_model, tensor_shapes
from minimind.weights.io import save_huggingface, save_minimind
from minimind.weights.names import EMBEDDING, HEAD, minimind_state
from tests.unit.weights.conftest import llama, minimind

IDS = torch.arange(3, 14)[None]


def same_state(one, other) -> bool:
    states = one.state_dict(), other.state_dict()
    return states[0].keys() == states[1].keys() and all(torch.equal(t, states[1][n]) for n, t in states[0].items())


def test_a_written_file_fills_another_model(kind, tmp_path):
    model, other = minimind(kind), minimind(kind, seed=1)
    assert not same_state(model, other)
    save_weights(model, tmp_path / "model.pth", torch.float32)
    load_weights(other, tmp_path / "model.pth")
    assert same_state(model, other)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_file_has_the_dtype_asked_for_and_the_model_keeps_its_own(dtype, tmp_path):
    model = minimind("minimind2")
    save_weights(model, tmp_path / "model.pth", dtype)
    assert {t.dtype for t in torch.load(tmp_path / "model.pth", weights_only=True).values()} == {dtype}
    other = minimind("minimind2", seed=1)
    load_weights(other, tmp_path / "model.pth")
    assert {p.dtype for p in other.parameters()} == {torch.float32}
    assert torch.equal(other.model.norm.weight, model.model.norm.weight.to(dtype).float())


def test_float16_is_the_default(tmp_path):
    save_weights(minimind("minimind2"), tmp_path / "model.pth")
    assert {t.dtype for t in torch.load(tmp_path / "model.pth", weights_only=True).values()} == {torch.float16}


def test_a_tied_head_is_written_as_minimind_does_even_if_the_state_has_none(tmp_path):
    model = minimind("minimind2")
    state = {name: model.state_dict()[name] for name in tensor_shapes(model)}
    assert HEAD not in state
    save_minimind(state, tmp_path / "model.pth", torch.float32)
    written = torch.load(tmp_path / "model.pth", weights_only=True)
    assert torch.equal(written[HEAD], written[EMBEDDING])


def test_an_untied_head_is_written_as_it_is(tmp_path):
    model = minimind("minimind2", tie_word_embeddings=False)
    save_weights(model, tmp_path / "model.pth", torch.float32)
    written = torch.load(tmp_path / "model.pth", weights_only=True)
    assert torch.equal(written[HEAD], model.lm_head.weight)
    assert not torch.equal(written[HEAD], written[EMBEDDING])


def test_a_file_that_does_not_fit_changes_no_tensor(tmp_path):
    """Every tensor or none: the missing one comes last."""
    state = dict(minimind_state(minimind("minimind2", seed=1).state_dict()))
    del state["model.norm.weight"]
    torch.save(state, tmp_path / "model.pth")
    model = minimind("minimind2")
    with pytest.raises(WeightsError, match=r"missing: model\.norm\.weight \(32,\)"):
        load_weights(model, tmp_path / "model.pth")
    assert same_state(model, minimind("minimind2"))


def test_an_expert_that_does_not_fit_its_stack_changes_no_tensor_either(tmp_path):
    state = {name: t.clone() for name, t in minimind_state(minimind("minimind2_moe", seed=1).state_dict()).items()}
    state["model.layers.1.mlp.experts.3.up_proj.weight"] = torch.ones(7, 32)
    torch.save(state, tmp_path / "model.pth")
    model = minimind("minimind2_moe")
    with pytest.raises(WeightsError, match=r"model\.layers\.1\.mlp\.experts"):
        load_weights(model, tmp_path / "model.pth")
    assert same_state(model, minimind("minimind2_moe"))


def test_a_file_of_another_size_lists_what_differs(tmp_path):
    save_weights(minimind("minimind2", num_hidden_layers=3, vocab_size=62), tmp_path / "model.pth")
    with pytest.raises(WeightsError) as caught:
        load_weights(minimind("minimind2"), tmp_path / "model.pth")
    message = str(caught.value)
    assert "unexpected: model.layers.2.self_attn.q_proj.weight (32, 32)" in message
    assert "wrong shape: model.embed_tokens.weight is (62, 32), the model has (61, 32)" in message


def test_a_mixture_does_not_load_into_a_dense_model(tmp_path):
    save_weights(minimind("minimind2_moe"), tmp_path / "model.pth")
    with pytest.raises(WeightsError, match=r"missing: model\.layers\.0\.mlp\.gate_proj\.weight"):
        load_weights(minimind("minimind2"), tmp_path / "model.pth")


def test_writing_leaves_no_partial_file_and_replaces_the_old(tmp_path):
    path = tmp_path / "new" / "model.pth"
    for seed in (0, 1):
        save_weights(minimind("minimind2", seed=seed), path, torch.float32)
        assert [entry.name for entry in path.parent.iterdir()] == ["model.pth"]
    model = minimind("minimind2")
    load_weights(model, path)
    assert same_state(model, minimind("minimind2", seed=1))


def test_a_place_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "model.pth").mkdir()
    with pytest.raises(WeightsError, match=r"model\.pth: cannot be written"):
        save_weights(minimind("minimind2"), tmp_path / "model.pth")


def test_a_folder_that_is_a_file_is_said(tmp_path):
    (tmp_path / "out").touch()
    with pytest.raises(WeightsError, match="cannot be written"):
        save_weights(minimind("minimind2"), tmp_path / "out" / "model.pth")


@pytest.mark.parametrize("tied", [True, False])
def test_a_llama_folder_round_trip(tied, tokenizer, tmp_path):
    model, folder = llama(tied), tmp_path / "folder"
    save_huggingface(model.config, model.state_dict(), folder, tokenizer, torch.float32)
    again = AutoModelForCausalLM.from_pretrained(folder).eval()
    assert same_state(model, again)
    torch.testing.assert_close(again(IDS).logits, model(IDS).logits, rtol=0, atol=1e-6)


def test_a_folder_brings_its_tokenizer_and_replaces_an_older_one(tokenizer, tmp_path):
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


def test_saving_does_not_change_the_model_it_saves(tokenizer, tmp_path):
    """The running model's configuration must not take the file's dtype."""
    model = minimind("minimind2")
    before = model.config.dtype
    save_huggingface(model.config, model.state_dict(), tmp_path / "folder", tokenizer, torch.bfloat16)
    assert model.config.dtype == before


@pytest.mark.parametrize("architecture", ["minimind", "llama"])
def test_a_plain_model_computes_with_the_tensors_given(architecture):
    """Llama keeps rotary tables in a buffer, which no state dict has: they must be made anew."""
    model = llama(tied=True) if architecture == "llama" else minimind("minimind2_moe")
    state = {name: model.state_dict()[name] for name in tensor_shapes(model)}
    plain = plain_model(model.config, state)
    assert not plain.training
    assert plain.state_dict()[EMBEDDING].data_ptr() == state[EMBEDDING].data_ptr()
    torch.testing.assert_close(plain(IDS).logits, model(IDS).logits, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "config",
    [
        GPT2Config(vocab_size=64, n_embd=32, n_layer=1, n_head=4, n_positions=64),
        GemmaConfig(
            vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4,
            num_key_value_heads=2, head_dim=8,
        ),
        OPTConfig(
            vocab_size=64, hidden_size=32, ffn_dim=48, num_hidden_layers=1, num_attention_heads=4,
            word_embed_proj_dim=32, max_position_embeddings=64,
        ),
    ],
    ids=lambda config: config.model_type,
)  # fmt: skip
def test_models_with_ties_and_buffers_of_their_own_are_whole(config):
    """Made empty, filled and asked: the same logits as the model whose tensors they are."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    state = {name: model.state_dict()[name] for name in tensor_shapes(model)}
    plain = plain_model(config, state)
    tokens = torch.randint(3, 64, (2, 9))
    assert not any(tensor.is_meta for tensor in [*plain.parameters(), *plain.buffers()])
    torch.testing.assert_close(plain(tokens).logits, model(tokens).logits, rtol=0, atol=0)
