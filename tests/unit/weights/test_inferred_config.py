"""The configuration of a MiniMind weight file, inferred from tensor names and shapes."""

from __future__ import annotations

import json

import pytest
import torch

from minimind import MiniMindConfig, save_weights
from minimind.errors import WeightsError
from minimind.weights.files import TensorFile, open_pickled
from minimind.weights.inferred_config import infer_config
from minimind.weights.names import EMBEDDING, HEAD, minimind_state
from tests.unit.weights.conftest import minimind

GOLDEN = ("minimind2_dense", "minimind2_moe", "minimind3_dense", "minimind3_moe")

COMPARED = (
    "generation",
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "intermediate_size",
    "use_moe",
    "num_experts",
    "num_experts_per_tok",
    "moe_intermediate_size",
    "n_shared_experts",
    "rms_norm_eps",
    "rope_theta",
    "router_aux_loss_coef",
    "seq_aux",
    "norm_topk_prob",
    "tie_word_embeddings",
)


@pytest.mark.parametrize("name", GOLDEN)
def test_configuration_of_the_golden_files(shared, name):
    """All fields of MiniMind's own configuration except the context length and the feed-forward width that the model
    does not use (dense width in a mixture of experts, expert width in a dense model)."""
    golden = MiniMindConfig(**json.loads((shared / "golden" / f"{name}.json").read_text())["config"])
    read = infer_config(open_pickled(shared / "golden" / f"{name}_policy.pth"), {})
    compared = [
        field for field in COMPARED if field != ("intermediate_size" if golden.use_moe else "moe_intermediate_size")
    ]
    assert {field: getattr(read, field) for field in compared} == {field: getattr(golden, field) for field in compared}


@pytest.mark.parametrize("tied", [True, False])
def test_tied_and_untied_heads_are_distinguished(kind, tied, tmp_path):
    save_weights(minimind(kind, tie_word_embeddings=tied), tmp_path / "model.pth")
    file = open_pickled(tmp_path / "model.pth")
    assert HEAD in file
    assert infer_config(file, {}).tie_word_embeddings == tied


def test_a_file_without_a_head_is_tied(tmp_path):
    state = dict(minimind_state(minimind("minimind2").state_dict()))
    del state[HEAD]
    torch.save(state, tmp_path / "model.pth")
    assert infer_config(open_pickled(tmp_path / "model.pth"), {}).tie_word_embeddings


def test_equal_but_separate_head_and_embedding_are_tied(tmp_path):
    """MiniMind's float16 files hold two copies."""
    state = {name: tensor.clone() for name, tensor in minimind_state(minimind("minimind2").state_dict()).items()}
    assert state[HEAD].data_ptr() != state[EMBEDDING].data_ptr()
    torch.save(state, tmp_path / "model.pth")
    assert infer_config(open_pickled(tmp_path / "model.pth"), {}).tie_word_embeddings


def file_of(state: dict[str, torch.Tensor], tmp_path) -> TensorFile:
    torch.save(dict(state), tmp_path / "model.pth")
    return open_pickled(tmp_path / "model.pth")


def test_fields_that_shapes_do_not_determine_come_from_the_user(tmp_path):
    state = minimind_state(minimind("minimind2_moe", num_attention_heads=4).state_dict())
    file = file_of(state, tmp_path)
    extra_fields = {
        "num_attention_heads": 4,
        "num_experts_per_tok": 3,
        "rope_theta": 5e5,
        "inference_rope_scaling": True,
    }
    config = infer_config(file, extra_fields)
    assert (config.num_attention_heads, config.head_dim, config.num_key_value_heads) == (4, 8, 2)
    assert config.num_experts_per_tok == 3
    assert config.rope_theta == 5e5
    assert config.yarn is not None


def test_head_size_of_generation_3_comes_from_the_query_norm(tmp_path):
    """q_norm is one head wide, so no flag is needed, and a wrong flag changes nothing."""
    state = minimind_state(minimind("minimind3", num_attention_heads=4, head_dim=16).state_dict())
    config = infer_config(file_of(state, tmp_path), {"num_attention_heads": 2})
    assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (4, 4, 16)


def test_indivisible_heads_name_the_flag(tmp_path):
    file = file_of(minimind_state(minimind("minimind2").state_dict()), tmp_path)
    with pytest.raises(WeightsError, match=r"32 query channels do not divide into 5 heads; give --num_attention_heads"):
        infer_config(file, {"num_attention_heads": 5})


def test_other_models_are_refused_with_the_names_found(tmp_path):
    file = file_of({"transformer.wte.weight": torch.ones(2, 2)}, tmp_path)
    with pytest.raises(
        WeightsError, match=r"not MiniMind weights; expected 'model.embed_tokens.weight'.* found transformer.wte"
    ):
        infer_config(file, {})


def test_embedding_that_is_not_a_matrix_is_refused(tmp_path):
    state = dict(minimind_state(minimind("minimind2").state_dict()))
    state[EMBEDDING] = torch.ones(61)
    with pytest.raises(WeightsError, match=r"model.embed_tokens.weight has shape \(61,\); a matrix is expected"):
        infer_config(file_of(state, tmp_path), {})


def test_a_router_without_experts_is_refused(tmp_path):
    state = {
        name: t for name, t in minimind_state(minimind("minimind2_moe").state_dict()).items() if ".experts." not in name
    }
    with pytest.raises(WeightsError, match=r"has a router but no 'model.layers.0.mlp.experts.0.gate_proj.weight'"):
        infer_config(file_of(state, tmp_path), {})


def test_key_channels_that_do_not_divide_name_the_flag(tmp_path):
    """32 query channels make 4 heads of 8, but 12 key channels are no multiple of 8."""
    state = dict(minimind_state(minimind("minimind2").state_dict()))
    state["model.layers.0.self_attn.k_proj.weight"] = torch.ones(12, 32)
    message = "with 4 heads of 8 channels, 12 key channels do not divide into heads; give another --num_attention_heads"
    with pytest.raises(WeightsError, match=message):
        infer_config(file_of(state, tmp_path), {"num_attention_heads": 4})


def test_a_gap_between_layers_is_refused(tmp_path):
    state = {
        name.replace("layers.1.", "layers.2."): tensor
        for name, tensor in minimind_state(minimind("minimind2").state_dict()).items()
    }
    with pytest.raises(WeightsError, match="its layers are not numbered 0 to 1"):
        infer_config(file_of(state, tmp_path), {})


def test_an_empty_router_is_refused(tmp_path):
    state = dict(minimind_state(minimind("minimind2_moe").state_dict()))
    state["model.layers.0.mlp.gate.weight"] = torch.ones(0, 32)
    with pytest.raises(WeightsError, match=r"mlp.gate.weight is empty \(shape \(0, 32\)\)"):
        infer_config(file_of(state, tmp_path), {})


def test_fields_that_make_no_model_are_named(tmp_path):
    file = file_of(minimind_state(minimind("minimind2_moe").state_dict()), tmp_path)
    with pytest.raises(
        WeightsError,
        match=r"no MiniMind model has these tensors with --num_experts_per_tok 9: num_experts_per_tok is 9",
    ):
        infer_config(file, {"num_experts_per_tok": 9})
