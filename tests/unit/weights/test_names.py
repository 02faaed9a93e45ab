"""MiniMind's names and ours, and what the tensors of a file tell about its model."""

from __future__ import annotations

import json

import pytest
import torch

from minimind import MiniMindConfig, save_weights
from minimind.errors import WeightsError
from minimind.weights.files import TensorFile, open_pickled
from minimind.weights.names import EMBEDDING, HEAD, minimind_state, read_config, stacked_names
from tests.unit.weights.conftest import minimind

GOLDEN = ("minimind2_dense", "minimind2_moe", "minimind3_dense", "minimind3_moe")


def test_experts_are_grouped_in_their_order():
    layer = "model.layers.0.mlp.experts"
    names = [f"{layer}.{index}.up_proj.weight" for index in (10, 2, 0, 1)] + [HEAD, "model.layers.0.mlp.gate.weight"]
    assert stacked_names(names) == {
        # by number, not by text: 2 before 10
        f"{layer}.up_proj": [f"{layer}.{index}.up_proj.weight" for index in (0, 1, 2, 10)],
        HEAD: [HEAD],
        "model.layers.0.mlp.gate.weight": ["model.layers.0.mlp.gate.weight"],
    }


def test_shared_experts_are_not_stacked():
    name = "model.layers.0.mlp.shared_experts.0.up_proj.weight"
    assert stacked_names([name]) == {name: [name]}


def test_stacks_are_taken_apart_again():
    layer = "model.layers.1.mlp.experts"
    stack = torch.arange(12.0).view(3, 2, 2)
    state = minimind_state({f"{layer}.down_proj": stack, "model.norm.weight": torch.ones(2)})
    assert list(state) == [*(f"{layer}.{index}.down_proj.weight" for index in range(3)), "model.norm.weight"]
    assert torch.equal(state[f"{layer}.1.down_proj.weight"], torch.tensor([[4.0, 5.0], [6.0, 7.0]]))


def test_names_there_and_back(kind):
    ours = minimind(kind).state_dict()
    assert set(stacked_names(minimind_state(ours))) == set(ours)


TOLD = (
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
def test_golden_files_tell_their_own_configuration(shared, name):
    """All that MiniMind's own configuration says, but for the context length and (mixtures) the width of a
    dense network, which such a model does not have."""
    golden = MiniMindConfig(**json.loads((shared / "golden" / f"{name}.json").read_text())["config"])
    read = read_config(open_pickled(shared / "golden" / f"{name}_policy.pth"), {})
    told = [field for field in TOLD if field != ("intermediate_size" if golden.use_moe else "moe_intermediate_size")]
    assert {field: getattr(read, field) for field in told} == {field: getattr(golden, field) for field in told}


@pytest.mark.parametrize("tied", [True, False])
def test_tied_and_untied_heads_are_told_apart(kind, tied, tmp_path):
    save_weights(minimind(kind, tie_word_embeddings=tied), tmp_path / "model.pth")
    file = open_pickled(tmp_path / "model.pth")
    assert HEAD in file
    assert read_config(file, {}).tie_word_embeddings == tied


def test_a_file_without_a_head_is_tied(tmp_path):
    state = dict(minimind_state(minimind("minimind2").state_dict()))
    del state[HEAD]
    torch.save(state, tmp_path / "model.pth")
    assert read_config(open_pickled(tmp_path / "model.pth"), {}).tie_word_embeddings


def test_equal_but_separate_head_and_embedding_are_tied(tmp_path):
    """MiniMind's float16 files hold two copies."""
    state = {name: tensor.clone() for name, tensor in minimind_state(minimind("minimind2").state_dict()).items()}
    assert state[HEAD].data_ptr() != state[EMBEDDING].data_ptr()
    torch.save(state, tmp_path / "model.pth")
    assert read_config(open_pickled(tmp_path / "model.pth"), {}).tie_word_embeddings


def file_of(state: dict[str, torch.Tensor], tmp_path) -> TensorFile:
    torch.save(dict(state), tmp_path / "model.pth")
    return open_pickled(tmp_path / "model.pth")


def test_what_tensors_cannot_tell_is_taken_from_the_user(tmp_path):
    state = minimind_state(minimind("minimind2_moe", num_attention_heads=4).state_dict())
    file = file_of(state, tmp_path)
    untold = {"num_attention_heads": 4, "num_experts_per_tok": 3, "rope_theta": 5e5, "inference_rope_scaling": True}
    config = read_config(file, untold)
    assert (config.num_attention_heads, config.head_dim, config.num_key_value_heads) == (4, 8, 2)
    assert config.num_experts_per_tok == 3
    assert config.rope_theta == 5e5
    assert config.yarn is not None


def test_generation_3_tells_its_heads_by_their_norms(tmp_path):
    """q_norm is one head wide, so no flag is needed, and a wrong one changes nothing."""
    state = minimind_state(minimind("minimind3", num_attention_heads=4, head_dim=16).state_dict())
    config = read_config(file_of(state, tmp_path), {"num_attention_heads": 2})
    assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (4, 4, 16)


def test_heads_that_do_not_divide_name_the_flag(tmp_path):
    file = file_of(minimind_state(minimind("minimind2").state_dict()), tmp_path)
    with pytest.raises(WeightsError, match=r"32 query channels do not divide into 5 heads; give --num_attention_heads"):
        read_config(file, {"num_attention_heads": 5})


def test_other_models_are_refused_with_what_was_found(tmp_path):
    file = file_of({"transformer.wte.weight": torch.ones(2, 2)}, tmp_path)
    with pytest.raises(
        WeightsError, match=r"not MiniMind weights; expected 'model.embed_tokens.weight'.* found transformer.wte"
    ):
        read_config(file, {})


def test_an_embedding_that_is_no_matrix_is_refused(tmp_path):
    state = dict(minimind_state(minimind("minimind2").state_dict()))
    state[EMBEDDING] = torch.ones(61)
    with pytest.raises(WeightsError, match=r"model.embed_tokens.weight has shape \(61,\); a matrix is expected"):
        read_config(file_of(state, tmp_path), {})


def test_a_router_without_experts_is_refused(tmp_path):
    state = {
        name: t for name, t in minimind_state(minimind("minimind2_moe").state_dict()).items() if ".experts." not in name
    }
    with pytest.raises(WeightsError, match=r"has a router but no 'model.layers.0.mlp.experts.0.gate_proj.weight'"):
        read_config(file_of(state, tmp_path), {})
