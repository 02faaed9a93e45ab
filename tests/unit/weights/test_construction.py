"""Models made from a configuration: no memory for parameters, computed buffers, and models around given tensors."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, GemmaConfig, GPT2Config, LlamaConfig, OPTConfig

from minimind.weights.construction import (
    empty_model,
    model_from_tensors,
    restore_computed_buffers,
    tensor_shapes,
    uninitialized_model,
)
from minimind.weights.names import EMBEDDING, HEAD
from tests.parity.families import tiny_config, tiny_model
from tests.unit.weights.conftest import llama, minimind

IDS = torch.arange(3, 14)[None]
INVERSE_FREQUENCIES = "model.rotary_emb.inv_freq"


def test_an_empty_model_has_meta_parameters_and_computed_buffers(kind):
    model = empty_model(minimind(kind).config)
    assert all(parameter.is_meta for parameter in model.parameters())
    assert not any(buffer.is_meta for buffer in model.buffers())
    assert {name: tuple(p.shape) for name, p in model.named_parameters()} == tensor_shapes(minimind(kind))


def test_rotary_frequencies_of_an_empty_llama_are_those_of_the_formula():
    """Base 10000, heads of 32 / 4 = 8 channels: 10000^(-2i / 8) for i = 0 to 3."""
    frequencies = dict(empty_model(llama(tied=True).config).named_buffers())[INVERSE_FREQUENCIES]
    torch.testing.assert_close(frequencies, torch.tensor([1.0, 0.1, 0.01, 0.001]))


@pytest.mark.parametrize("tied", [True, False])
def test_an_empty_model_is_tied_as_its_configuration_says(tied):
    model = empty_model(llama(tied).config)
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied


def test_construction_changes_neither_torch_nor_the_configuration():
    config = llama(tied=True).config
    before, register = config.to_dict(), nn.Module.register_parameter
    model = uninitialized_model(config, torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert config.to_dict() == before
    empty_model(config)
    assert nn.Module.register_parameter is register


def test_a_failed_construction_restores_torch():
    register = nn.Module.register_parameter
    with pytest.raises(RuntimeError):
        empty_model(LlamaConfig(hidden_size=-8, num_attention_heads=2, num_hidden_layers=1))
    assert nn.Module.register_parameter is register


def test_shapes_name_a_tied_tensor_once_and_leave_computed_buffers_out():
    tied, untied = tensor_shapes(llama(tied=True)), tensor_shapes(llama(tied=False))
    assert tied[EMBEDDING] == (61, 32)
    assert HEAD not in tied
    assert untied == {**tied, HEAD: (61, 32)}
    assert INVERSE_FREQUENCIES not in tied


def test_shapes_contain_buffers_that_are_saved():
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    assert tensor_shapes(model) == {
        "0.weight": (2, 3), "0.bias": (2,), "1.weight": (2,), "1.bias": (2,),
        "1.running_mean": (2,), "1.running_var": (2,), "1.num_batches_tracked": (),
    }  # fmt: skip


@pytest.mark.parametrize("architecture", ["minimind", "llama"])
def test_a_model_from_tensors_computes_with_them_without_a_copy(architecture):
    """Llama's rotary tables are in no state dict: they must be computed again."""
    model = llama(tied=True) if architecture == "llama" else minimind("minimind2_moe")
    state = {name: model.state_dict()[name] for name in tensor_shapes(model)}
    built = model_from_tensors(model.config, state)
    assert not built.training
    assert built.state_dict()[EMBEDDING].data_ptr() == state[EMBEDDING].data_ptr()
    torch.testing.assert_close(built(IDS).logits, model(IDS).logits, rtol=0, atol=1e-6)


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
def test_models_with_ties_and_buffers_of_their_own_are_complete(config):
    """A model built around the tensors of another one has exactly its logits, and nothing is left on meta."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    state = {name: model.state_dict()[name] for name in tensor_shapes(model)}
    built = model_from_tensors(config, state)
    tokens = torch.randint(3, 64, (2, 9))
    assert not any(tensor.is_meta for tensor in [*built.parameters(), *built.buffers()])
    torch.testing.assert_close(built(tokens).logits, model(tokens).logits, rtol=0, atol=0)


def test_parameters_that_are_constants_do_not_train():
    """Pegasus' sinusoidal positions are a parameter without gradient."""
    model = tiny_model(tiny_config("pegasus"))
    built = model_from_tensors(model.config, {name: model.state_dict()[name] for name in tensor_shapes(model)})
    constants = [name for name, parameter in built.named_parameters() if not parameter.requires_grad]
    assert constants == ["model.decoder.embed_positions.weight"]


def test_a_missing_tensor_is_an_error():
    model = minimind("minimind2")
    state = {name: model.state_dict()[name] for name in tensor_shapes(model) if name != "model.norm.weight"}
    with pytest.raises(KeyError, match=r"model\.norm\.weight"):
        model_from_tensors(model.config, state)


@pytest.mark.parametrize("model_type", ["xglm", "llama", "gemma3", "mpt", "gptj", "bloom", "deepseek_v3", "emu3"])
def test_restored_buffers_are_those_of_a_model_in_16_bits(model_type):
    """transformers makes XGLM's positions in 16 bits, since they are added to activations, but not Llama's angles."""
    model = tiny_model(tiny_config(model_type))
    wanted = AutoModelForCausalLM.from_config(tiny_config(model_type), dtype=torch.bfloat16)
    model.bfloat16()
    restore_computed_buffers(model)
    saved = set(model.state_dict())
    expected = {name: buffer for name, buffer in wanted.named_buffers() if name not in saved}
    found = {name: buffer for name, buffer in model.named_buffers() if name not in saved}
    assert found.keys() == expected.keys()
    for name, buffer in expected.items():
        assert found[name].dtype == buffer.dtype
        assert torch.equal(found[name], buffer)
    assert model(input_ids=IDS).logits.isfinite().all()


def test_buffers_that_were_cast_are_computed_again():
    """In bfloat16 0.1 is 0.10009766, and restored it is the float32 number."""
    model = llama(tied=True)
    original = dict(model.named_buffers())[INVERSE_FREQUENCIES].clone()
    model.bfloat16()
    assert dict(model.named_buffers())[INVERSE_FREQUENCIES].dtype == torch.bfloat16
    restore_computed_buffers(model)
    restored = dict(model.named_buffers())[INVERSE_FREQUENCIES]
    assert restored.dtype == torch.float32
    assert torch.equal(restored, original)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
