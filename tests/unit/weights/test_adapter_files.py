"""Files of adapters: what is written gives the same logits in plain peft; damaged and foreign files are refused."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from minimind.errors import WeightsError
from minimind.model.adapters import AdapterSpec, adapter_of, add_adapters, import_peft, peft_config, saved_name
from minimind.model.configuration import MiniMindConfig
from minimind.weights.adapter_files import merged_state, open_adapter, save_adapter, save_minimind_adapter
from minimind.weights.adapters import adapter_shapes
from minimind.weights.construction import model_from_tensors
from minimind.weights.sources import RandomSource
from tests.faults.fuzzing import damaged, fuzzed, only_our_errors
from tests.unit.weights.adapted import SIZES, TOKENS, dense, plain, spec_of, trained


@torch.no_grad()
def test_merged_weights_give_the_logits_of_the_adapters(adapted):
    base, spec = adapted
    model, state = trained(base, spec)
    merged = merged_state(base, spec, state)
    assert {name: tuple(t.shape) for name, t in merged.items()} == dict(base.shapes())
    torch.testing.assert_close(model_from_tensors(base.config, merged)(TOKENS).logits, model(TOKENS).logits)


@torch.no_grad()
def test_a_written_adapter_loads_in_plain_peft_and_here(adapted, tmp_path):
    base, spec = adapted
    model, state = trained(base, spec)
    save_adapter(state, spec, base, tmp_path / "adapter", True)
    theirs = import_peft().PeftModel.from_pretrained(plain(base), tmp_path / "adapter")
    torch.testing.assert_close(theirs(TOKENS).logits, model(TOKENS).logits, rtol=0, atol=1e-6)
    again = open_adapter(tmp_path / "adapter", base, dropout=0.0)
    assert again.spec == spec
    assert all(torch.equal(again.read(name), tensor) for name, tensor in state.items())


def test_an_adapter_that_plain_peft_wrote_is_read(tmp_path):
    base = dense()
    spec = spec_of(base)
    theirs = import_peft().get_peft_model(plain(base), peft_config(plain(base), spec, "gaussian"))
    theirs.save_pretrained(tmp_path / "adapter")
    ours = open_adapter(tmp_path / "adapter", base, dropout=0.1)
    assert ours.spec == AdapterSpec(rank=4, alpha=8.0, dropout=0.1, layers=spec.layers)
    for name, parameter in theirs.named_parameters():
        if adapter_of(name):
            assert torch.equal(ours.read(name.removeprefix("base_model.model.")), parameter)


@torch.no_grad()
def test_minimind_form_is_an_unscaled_product_and_comes_back(tmp_path):
    base = dense()
    spec = spec_of(base, "square")
    model, state = trained(base, spec)
    save_minimind_adapter(state, spec, tmp_path / "lora.pth", torch.float32)
    file = torch.load(tmp_path / "lora.pth", weights_only=True)
    assert set(file) == {f"{layer}.lora.{part}.weight" for layer in spec.layers for part in "AB"}
    # MiniMind adds lora(x) = B(A(x)) to the output of each square layer.
    theirs = plain(base)
    for layer in spec.layers:
        theirs.get_submodule(layer).weight += file[f"{layer}.lora.B.weight"] @ file[f"{layer}.lora.A.weight"]
    torch.testing.assert_close(theirs(TOKENS).logits, model(TOKENS).logits)
    again = open_adapter(tmp_path / "lora.pth", base, dropout=0.0)
    assert (again.spec.rank, again.spec.scaling, again.spec.layers) == (4, 1.0, spec.layers)
    other = plain(base)
    add_adapters(other, again.spec)
    for name, parameter in other.named_parameters():
        if adapter_of(name):
            parameter.copy_(again.read(name))
    torch.testing.assert_close(other(TOKENS).logits, model(TOKENS).logits)


@pytest.fixture
def written(tmp_path):
    base = dense()
    spec = spec_of(base)
    _, state = trained(base, spec)
    save_adapter(state, spec, base, tmp_path / "adapter", True)
    return base, tmp_path / "adapter"


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("r", 5, "wrong shape"),
        ("r", None, "no number"),
        ("r", 0, "below 1"),
        ("peft_type", "IA3", "peft_type is 'IA3'"),
        ("modules_to_save", ["lm_head"], "modules_to_save"),
        ("rank_pattern", {"q_proj": 2}, "rank_pattern"),
        ("bias", "all", "bias is 'all'"),
        ("use_dora", True, "lora_magnitude_vector"),
        ("init_lora_weights", "pissa", "init_lora_weights is 'pissa'"),
        ("use_qalora", True, "use_qalora is True"),
        ("invented", 1, "invented is 1"),
        ("target_parameters", ["q_proj.weight"], "no stack of experts"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused_by_name(written, field, value, words):
    base, folder = written
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, field: value}))
    with pytest.raises(WeightsError, match=words):
        open_adapter(folder, base, dropout=0.0)


def test_missing_and_foreign_tensors_are_listed(written):
    base, folder = written
    tensors = load_file(folder / "adapter_model.safetensors")
    name = saved_name(next(iter(adapter_shapes(base.config, spec_of(base)))))
    tensors["base_model.model.elsewhere.lora_A.weight"] = tensors.pop(name)
    save_file(tensors, folder / "adapter_model.safetensors")
    with pytest.raises(WeightsError, match=rf"missing: {name}\n.*unexpected: base_model\.model\.elsewhere"):
        open_adapter(folder, base, dropout=0.0)


def test_an_adapter_of_the_head_is_refused(tmp_path):
    # Packs multiply by the head's weight alone, so its adapter would be left out.
    base = RandomSource(MiniMindConfig(generation=3, tie_word_embeddings=False, **SIZES), seed=5)
    spec = AdapterSpec(rank=4, alpha=8.0, layers=("lm_head", *spec_of(base).layers))
    _, state = trained(base, spec)
    save_adapter(state, spec, base, tmp_path / "adapter", True)
    with pytest.raises(WeightsError, match=r"unexpected: base_model\.model\.lm_head\.lora_A"):
        open_adapter(tmp_path / "adapter", base, dropout=0.0)


def test_an_adapter_of_another_model_is_refused(written):
    _, folder = written
    other = RandomSource(MiniMindConfig(generation=3, **{**SIZES, "hidden_size": 64}), seed=5)
    with pytest.raises(WeightsError, match="wrong shape"):
        open_adapter(folder, other, dropout=0.0)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The files of an adapter in each of its forms, by name: peft's two and MiniMind's."""
    base, folder = dense(), tmp_path_factory.mktemp("files")
    spec = spec_of(base, "square")
    _, state = trained(base, spec)
    save_adapter(state, spec, base, folder / "adapter", True)
    save_minimind_adapter(state, spec, folder / "lora.pth", torch.float16)
    paths = [folder / "adapter/adapter_config.json", folder / "adapter/adapter_model.safetensors", folder / "lora.pth"]
    contents = {path.name: path.read_bytes() for path in paths}
    torch.save(load_file(paths[1]), folder / "adapter_model.bin")
    return contents | {"adapter_model.bin": (folder / "adapter_model.bin").read_bytes()}


def laid(folder, files, tensors):
    """A folder in peft's form with one of its two files of tensors, and MiniMind's file beside it."""
    for name in ("adapter_config.json", tensors, "lora.pth"):
        (folder / name).write_bytes(files[name])
    return folder


def test_an_adapter_that_an_older_peft_pickled_is_read(files, tmp_path):
    folder = laid(tmp_path, files, "adapter_model.bin")
    adapter = open_adapter(folder, dense(), dropout=0.0)
    tensors = torch.load(folder / "adapter_model.bin", weights_only=True)
    for name in adapter_shapes(dense().config, adapter.spec):
        torch.testing.assert_close(adapter.read(name), tensors[saved_name(name)], rtol=0, atol=0)


@pytest.mark.parametrize("name", ["adapter_model.bin", "lora.pth"])
def test_code_in_a_pickled_adapter_does_not_run(name, files, tmp_path):
    class Touch:
        def __reduce__(self):
            return (open, (str(tmp_path / "was_here"), "w"))

    folder = laid(tmp_path, files, "adapter_model.bin")
    torch.save({**torch.load(folder / name, weights_only=True), "more": Touch()}, folder / name)
    with pytest.raises(WeightsError, match=name):
        open_adapter(folder / name if name == "lora.pth" else folder, dense(), dropout=0.0)
    assert not (tmp_path / "was_here").exists()


@fuzzed(40)
@given(data=st.data())
def test_damaged_files_give_our_errors(data, files, tmp_path_factory):
    base, name = dense(), data.draw(st.sampled_from(sorted(files)))
    tensors = "adapter_model.bin" if name == "adapter_model.bin" else "adapter_model.safetensors"
    folder = laid(tmp_path_factory.mktemp("fuzz"), files, tensors)
    (folder / name).write_bytes(data.draw(damaged(files[name])))
    with only_our_errors():
        adapter = open_adapter(folder / name if name == "lora.pth" else folder, base, dropout=0.0)
        for name in adapter_shapes(base.config, adapter.spec):
            adapter.read(name)
