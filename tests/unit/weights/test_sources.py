"""Weight sources: the tensors of a model under its own names, from files of every kind or at random."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

from minimind import MiniMindConfig, MiniMindForCausalLM, save_weights
from minimind.errors import WeightsError
from minimind.weights.construction import tensor_shapes
from minimind.weights.io import fill, save_huggingface
from minimind.weights.names import minimind_state
from minimind.weights.sources import (
    HuggingFaceSource,
    MiniMindSource,
    RandomSource,
    WeightSource,
    open_weights,
    tensors,
)
from tests.unit.weights.conftest import llama, minimind


def own_state(model) -> dict[str, torch.Tensor]:
    """The model's tensors, each tied one once."""
    state = model.state_dict()
    return {name: state[name] for name in tensor_shapes(model)}


def assert_same_tensors(source, model) -> None:
    state = own_state(model)
    source.check_fit(tensor_shapes(model))
    assert dict(source.shapes()) == {name: tuple(tensor.shape) for name, tensor in state.items()}
    for name, tensor in tensors(source):
        assert torch.equal(tensor, state[name]), name


def test_minimind_file_has_the_tensors_of_its_model(kind, tmp_path):
    model = minimind(kind)
    save_weights(model, tmp_path / "model.pth", torch.float32)
    source = open_weights(tmp_path / "model.pth", {})
    assert isinstance(source, MiniMindSource)
    assert source.tokenizer_path is None
    assert_same_tensors(source, model)


@pytest.mark.parametrize("tied", [True, False])
def test_minimind_folder_has_the_tensors_of_its_model(kind, tied, tokenizer, tmp_path):
    model = minimind(kind, tie_word_embeddings=tied)
    save_huggingface(model.config, model.state_dict(), tmp_path / "folder", tokenizer, torch.float32)
    source = open_weights(tmp_path / "folder", {})
    assert isinstance(source, MiniMindSource)
    assert source.tokenizer_path == tmp_path / "folder"
    assert source.config.generation == model.config.generation
    assert_same_tensors(source, model)


@pytest.mark.parametrize("tied", [True, False])
def test_llama_folder_has_the_tensors_of_its_model(tied, tokenizer, tmp_path):
    model = llama(tied)
    model.save_pretrained(tmp_path)
    source = open_weights(tmp_path, {})
    assert isinstance(source, HuggingFaceSource)
    assert source.tokenizer_path == tmp_path
    assert_same_tensors(source, model)
    other = llama(tied, seed=1)
    fill(other, source)
    ids = torch.arange(3, 12)[None]
    torch.testing.assert_close(other(ids).logits, model(ids).logits, rtol=0, atol=1e-6)


def test_sharded_folder_has_the_tensors_of_its_model(tmp_path):
    model = llama(tied=False)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert_same_tensors(open_weights(tmp_path, {}), model)


def test_fingerprints_depend_on_content_alone(tmp_path):
    model = minimind("minimind2")
    save_weights(model, tmp_path / "one.pth")
    save_weights(model, tmp_path / "elsewhere" / "two.pth")
    save_weights(minimind("minimind2", seed=1), tmp_path / "three.pth")
    one, two, three = (
        open_weights(tmp_path / name, {}).fingerprint() for name in ("one.pth", "elsewhere/two.pth", "three.pth")
    )
    assert one == two
    assert one != three


class Given(WeightSource):
    """A source of given tensors."""

    def __init__(self, **given: torch.Tensor) -> None:
        self._given = given

    def shapes(self):
        return {name: tuple(tensor.shape) for name, tensor in self._given.items()}

    def read(self, name):
        return self._given[name]


def test_fingerprints_know_single_numbers_and_turned_matrices():
    numbers = [Given(scale=torch.tensor(value, dtype=torch.bfloat16)).fingerprint() for value in (1.0, 2.0, 1.0)]
    assert numbers[0] == numbers[2] != numbers[1]
    matrix = torch.arange(6.0).view(2, 3)
    turned, copied = (Given(weight=one).fingerprint() for one in (matrix.t(), matrix.t().contiguous()))
    assert turned == copied


CONFIG = MiniMindConfig(generation=3, use_moe=True, hidden_size=32, num_hidden_layers=2, vocab_size=61)


def test_random_weights_depend_on_seed_and_name_alone():
    """Not on the order in which ranks read them, nor on torch's own generator."""
    one = RandomSource(CONFIG, seed=42)
    torch.manual_seed(0)
    first = dict(tensors(one))
    torch.manual_seed(1)
    other = RandomSource(CONFIG, seed=42)
    backwards = {name: other.read(name) for name in reversed(list(other.shapes()))}
    assert all(torch.equal(backwards[name], tensor) for name, tensor in first.items())
    assert one.fingerprint() == other.fingerprint()
    assert RandomSource(CONFIG, seed=43).fingerprint() != one.fingerprint()


def test_random_weights_are_normal_and_norms_are_ones():
    source = RandomSource(CONFIG, seed=42)
    model = MiniMindForCausalLM(CONFIG)
    fill(model, source)
    for name, tensor in own_state(model).items():
        if tensor.ndim == 1:
            assert torch.equal(tensor, torch.ones_like(tensor)), name
    # 61 * 32 values of standard deviation 0.02
    assert model.model.embed_tokens.weight.std().item() == pytest.approx(0.02, rel=0.05)
    up, down = model.model.layers[0].mlp.experts.up_proj, model.model.layers[1].mlp.experts.up_proj
    assert not torch.equal(up, down)
    assert source.tokenizer_path is None
    assert source.origin == "random weights (seed 42)"


def damaged(kind: str, tmp_path, **changes: torch.Tensor | None):
    """A MiniMind file with tensors replaced or (None) left out; dots are written as two underscores."""
    state = dict(minimind_state(minimind(kind).state_dict()))
    for key, tensor in changes.items():
        state.pop(key.replace("__", "."))
        if tensor is not None:
            state[key.replace("__", ".")] = tensor
    torch.save({name: tensor.clone() for name, tensor in state.items()}, tmp_path / "model.pth")
    return open_weights(tmp_path / "model.pth", {})


def fit_error(source) -> str:
    with pytest.raises(WeightsError) as caught:
        source.check_fit(tensor_shapes(MiniMindForCausalLM(source.config)))
    return str(caught.value)


def test_every_problem_is_listed_with_its_key_and_shapes(tmp_path):
    source = damaged(
        "minimind2",
        tmp_path,
        model__norm__weight=None,
        model__layers__1__self_attn__o_proj__weight=torch.ones(32, 16),
    )
    source._parts["model.extra.weight"] = ["model.layers.0.input_layernorm.weight"]
    message = fit_error(source)
    assert message.startswith(f"{tmp_path / 'model.pth'}: does not fit the model:")
    assert "missing: model.norm.weight (32,)" in message
    assert "wrong shape: model.layers.1.self_attn.o_proj.weight is (32, 16), the model has (32, 32)" in message
    assert "unexpected: model.extra.weight" in message


def test_missing_expert_is_reported(tmp_path):
    with pytest.raises(WeightsError, match=r"layers.1.mlp.experts.up_proj has 3 of 4 experts: .*experts.3.up_proj"):
        damaged("minimind2_moe", tmp_path, model__layers__1__mlp__experts__2__up_proj__weight=None)


def test_at_most_twenty_problems_are_listed():
    source, expected = RandomSource(CONFIG, seed=1), {f"tensor.{i}": (1,) for i in range(30)}
    with pytest.raises(WeightsError) as caught:
        source.check_fit(expected)
    lines = str(caught.value).splitlines()
    assert len(lines) == 1 + 20 + 1
    assert lines[-1] == f"  ... and {30 + len(source.shapes()) - 20} more"


def test_experts_of_different_shapes_are_reported(tmp_path):
    wrong = {"model__layers__0__mlp__experts__3__up_proj__weight": torch.ones(7, 32)}
    source = damaged("minimind2_moe", tmp_path, **wrong)
    with pytest.raises(WeightsError, match=r"the experts of model.layers.0.mlp.experts.up_proj differ in shape"):
        source.shapes()


def test_path_of_another_kind_is_reported(tmp_path):
    with pytest.raises(WeightsError, match=r"neither a \.pth file nor a Hugging Face folder \(no config.json there\)"):
        open_weights(tmp_path, {})


@pytest.mark.parametrize("content", ["{", "[]", '{"model_type": "no_such_model"}'])
def test_broken_configuration_is_reported(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(WeightsError, match=r"config\.json: not a usable configuration"):
        open_weights(tmp_path, {})


def test_model_that_is_not_a_language_model_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit"}))
    with pytest.raises(WeightsError, match="model type 'vit' is not a causal language model"):
        open_weights(tmp_path, {})


def open_and_check(folder) -> None:
    """What a run does before it fills a model; either may refuse."""
    source = open_weights(folder, {})
    source.check_fit(tensor_shapes(LlamaForCausalLM(source.config)))


def test_missing_tensor_of_a_llama_folder_is_not_replaced_by_random_numbers(tmp_path):
    """transformers would draw the missing tensor at random and only log a warning."""
    model = llama(tied=False)
    model.save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    del state["model.layers.1.mlp.up_proj.weight"]
    save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(WeightsError, match=r"model\.layers\.1\.mlp\.up_proj\.weight"):
        open_and_check(tmp_path)


def test_extra_layers_of_a_llama_folder_are_not_ignored(tmp_path):
    llama(tied=False).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 1}))
    with pytest.raises(WeightsError, match=r"model\.layers\.1\."):
        open_and_check(tmp_path)


@pytest.mark.parametrize(("key", "value"), [("num_hidden_layers", 20_001), ("num_experts", 10**9)])
def test_absurd_sizes_are_refused_before_a_model_is_made(key, value, tmp_path):
    llama(tied=False).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "nested": {key: value}}))
    with pytest.raises(WeightsError, match=rf"config\.json: {key} is {value}; the limit is 20000"):
        open_weights(tmp_path, {})


def test_weights_that_transformers_converts_are_not_rounded_by_their_config_json(tmp_path):
    sizes = {"hidden_size": 32, "moe_intermediate_size": 16, "num_hidden_layers": 1, "vocab_size": 61}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "num_experts": 4}
    model = Qwen3MoeForCausalLM(Qwen3MoeConfig(**sizes, **heads)).eval()
    model.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "dtype": "bfloat16"}))
    assert_same_tensors(open_weights(tmp_path, {}), model)
