"""Adapters are exported merged with their base."""

from __future__ import annotations

import json

import pytest
import torch

from minimind import demo, save_weights
from minimind.conversion.command import export
from minimind.conversion.merged import adapter_in_run, is_adapter, named_base
from minimind.conversion.trained import open_trained
from minimind.errors import WeightsError
from minimind.model.adapters import AdapterSpec
from minimind.weights.adapter_files import merged_state, save_adapter, save_minimind_adapter
from minimind.weights.adapters import adapter_shapes
from minimind.weights.sources import open_weights
from tests.unit.conversion.made import made, write_adapter_checkpoint

SPEC = AdapterSpec(rank=2, alpha=4.0, layers=("model.layers.0.self_attn.o_proj", "model.layers.1.mlp.up_proj"))


@pytest.fixture
def base(tmp_path):
    save_weights(made(), tmp_path / "start.pth", torch.float32)
    return tmp_path / "start.pth"


@pytest.fixture
def state(base):
    torch.manual_seed(0)
    shapes = adapter_shapes(open_weights(base, {}).config, SPEC)
    return {name: torch.randn(shape) for name, shape in shapes.items()}


@pytest.fixture
def adapter(base, state, tmp_path):
    """The folder of a run with adapters."""
    run = tmp_path / "run"
    source = open_weights(base, {})
    run.mkdir()
    save_adapter(state, SPEC, source, run / "lora_dpo_32", True)
    record = {
        "weights": str(base),
        "identity": {"adapters": {"rank": 2}, "start weights": source.fingerprint()},
        "settings": {"tokenizer_path": {"value": str(demo.TOKENIZER_PATH)}},
    }
    (run / "run.json").write_text(json.dumps(record))
    return run / "lora_dpo_32"


def test_weights_are_those_of_base_and_adapter(adapter, base, state, tmp_path):
    expected = merged_state(open_weights(base, {}), SPEC, state)
    save_minimind_adapter(state, SPEC, tmp_path / "lora.pth", torch.float32)
    for path, given in ((adapter, None), (adapter.parent, None), (tmp_path / "lora.pth", base)):
        trained = open_trained(path, {}, given)
        assert (trained.kind, trained.base) == ("adapter", base)
        for name, tensor in expected.items():
            torch.testing.assert_close(trained.weights.read(name), tensor)


def test_a_run_with_adapters_is_exported_and_compared_with_its_base(adapter, tmp_path):
    values = export([str(adapter.parent), "--to", "qwen3", "--out", str(tmp_path / "out")])
    assert values["source"]["kind"] == "adapter"
    assert values["run"]["path"] == str(adapter.parent)
    assert 0 < values["differ_from_base"]["float32"] < 0.1
    assert values["logits_differ_by"] < 1e-5


def test_a_checkpoint_of_adapters_is_merged_and_newer_than_the_folder(adapter, base, state, tmp_path):
    """A run that a signal has stopped has a checkpoint, and no adapter or an older one."""
    run, source = adapter.parent, open_weights(base, {})
    newer = {name: 2 * tensor for name, tensor in state.items()}
    folder = write_adapter_checkpoint(run / "checkpoints/step00000007", source, SPEC, newer)
    expected = merged_state(source, SPEC, newer)
    for path in (folder, run):
        trained = open_trained(path, {})
        assert (trained.kind, trained.step, trained.base, trained.run) == ("checkpoint", 7, base, run)
        assert trained.tokenizer == demo.TOKENIZER_PATH
        assert all(torch.equal(trained.weights.read(name), tensor) for name, tensor in expected.items())
    (run / "run.json").unlink()
    with pytest.raises(WeightsError, match=r"names no base; give the weights that it is for with --base"):
        open_trained(folder, {})
    assert open_trained(folder, {}, base).weights.origin == f"{folder} on {base}"
    save_weights(made(seed=3), tmp_path / "other.pth", torch.float32)
    with pytest.raises(WeightsError, match=r"trained on weights with the hash"):
        open_trained(folder, {}, tmp_path / "other.pth")


def test_an_adapter_in_the_folder_of_a_run_without_adapters_is_not_the_run_s(adapter, base):
    (adapter.parent / "run.json").write_text(json.dumps({"weights": "other", "identity": {"start weights": "abc"}}))
    trained = open_trained(adapter, {})
    assert (trained.run, trained.base) == (None, base)


def test_what_is_an_adapter(adapter, base):
    assert is_adapter(adapter)
    assert not is_adapter(adapter.parent)
    assert not is_adapter(base)
    assert adapter_in_run(adapter.parent) == adapter
    assert named_base(adapter) == str(base)
    assert named_base(adapter.parent) is None


def test_an_adapter_without_its_base_is_refused(adapter, base, tmp_path):
    save_weights(made(seed=3), tmp_path / "other.pth", torch.float32)
    with pytest.raises(WeightsError, match=r"trained on weights with the hash .* see --base"):
        open_trained(adapter, {}, tmp_path / "other.pth")
    base.unlink()
    with pytest.raises(WeightsError, match="which is not there; give the weights that it is for with --base"):
        open_trained(adapter, {})


def test_a_run_that_has_written_no_adapter_yet_is_refused(tmp_path):
    with pytest.raises(WeightsError, match="found none, and no checkpoint"):
        adapter_in_run(tmp_path)
