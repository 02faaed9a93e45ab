"""Weights of a checkpoint. Real ones of every stage: tests/distributed/test_reshard.py."""

from __future__ import annotations

import json

import pytest
import torch

from minimind.conversion.checkpoint import CheckpointSource, checkpoint_adapter, config_of, verified_manifest
from minimind.errors import CheckpointError, WeightsError
from minimind.model.family import model_identity
from tests.unit.conversion.made import (
    KINDS,
    MadeSource,
    adapters_of,
    made,
    own_state,
    write_adapter_checkpoint,
    write_checkpoint,
)


@pytest.mark.parametrize("kind", ["llama untied, YaRN", "qwen3_moe top 2, YaRN"])
def test_tensors_and_configuration_are_the_model_s(kind, tmp_path):
    model = made(kind)
    folder = write_checkpoint(tmp_path / "step00000007", model)
    manifest = verified_manifest(folder)
    assert manifest.step == 7
    source = CheckpointSource(folder, manifest)
    state = own_state(model)
    assert list(source.shapes()) == list(state)
    assert all(torch.equal(source.read(name), tensor) for name, tensor in state.items())
    assert source.config.to_dict() == model.config.to_dict()


@pytest.mark.parametrize("kind", KINDS)
def test_a_manifest_tells_the_whole_configuration(kind, tmp_path):
    config = made(kind).config
    assert config_of(json.loads(json.dumps(model_identity(config))), tmp_path).to_dict() == config.to_dict()


def test_a_damaged_file_is_named(tmp_path):
    folder = write_checkpoint(tmp_path / "step00000007", made())
    path = folder / "mp_rank_00_model_states.pt"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"is damaged: mp_rank_00_model_states.pt has \d+ of"):
        verified_manifest(folder)


def test_a_checkpoint_without_a_configuration_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="no usable configuration"):
        config_of({}, tmp_path)
    with pytest.raises(CheckpointError, match="no usable configuration"):
        config_of({"model.model_type": "nothing known"}, tmp_path)


def test_tensors_of_another_model_are_refused(tmp_path):
    folder = write_checkpoint(tmp_path / "step00000007", made(), **{"model.hidden_size": 64})
    with pytest.raises(WeightsError, match="does not fit the model"):
        CheckpointSource(folder, verified_manifest(folder))


@pytest.mark.parametrize("targets", ["square", "experts"])
def test_adapters_are_those_that_trained(targets, tmp_path):
    base = MadeSource(made("qwen3_moe"))
    spec, state = adapters_of(base, targets)
    folder = write_adapter_checkpoint(tmp_path / "step00000007", base, spec, state)
    found = checkpoint_adapter(folder, verified_manifest(folder), base)
    assert found.spec == spec
    assert all(torch.equal(found.read(name), tensor) for name, tensor in state.items())


@pytest.mark.parametrize("change", [{"targets": "3 (abcdef01)"}, {"rank": 3}, {"dora": True}])
def test_adapters_that_the_manifest_does_not_describe_are_refused(change, tmp_path):
    base = MadeSource(made())
    spec, state = adapters_of(base, "o_proj,up_proj")
    folder = write_adapter_checkpoint(tmp_path / "step00000007", base, spec, state, **change)
    with pytest.raises(CheckpointError, match=r"its adapters do not fit .*; give the folder of the adapter"):
        checkpoint_adapter(folder, verified_manifest(folder), base)
    manifest = verified_manifest(folder)
    del manifest.identity["adapters"]["rank"]
    with pytest.raises(CheckpointError, match="does not describe its adapters"):
        checkpoint_adapter(folder, manifest, base)
