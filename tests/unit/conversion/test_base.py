"""The start weights that trained weights are compared with."""

from __future__ import annotations

import re

import pytest
import torch

from minimind import save_weights
from minimind.conversion.base import open_base
from minimind.conversion.trained import open_trained
from minimind.errors import WeightsError
from minimind.weights.sources import RandomSource, open_weights
from tests.unit.conversion.made import made, own_state, write_checkpoint, write_run


@pytest.fixture
def start(tmp_path):
    save_weights(made(seed=1), tmp_path / "start.pth", torch.float32)
    return tmp_path / "start.pth"


def test_start_weights_are_those_of_the_run(start, tmp_path):
    fingerprint = open_weights(start, {}).fingerprint()
    trained = open_trained(write_run(tmp_path / "run", made(seed=2), str(start), fingerprint), {})
    base = open_base(trained, None, {})
    assert (base.origin, base.fingerprint, base.missing) == (str(start), fingerprint, "")
    assert torch.equal(base.weights.read("model.norm.weight"), own_state(made(seed=1))["model.norm.weight"])


def test_random_start_weights_are_made_again(tmp_path):
    model = made("qwen3_moe")
    source = RandomSource(model.config, 5)
    run = write_run(tmp_path / "run", model, source.origin, source.fingerprint())
    base = open_base(open_trained(run, {}), None, {})
    name = "model.layers.0.mlp.experts.up_proj"
    assert torch.equal(base.weights.read(name), source.read(name))


@pytest.mark.parametrize(
    ("origin", "fingerprint", "missing"),
    [("gone.pth", "abc", "gone.pth.*--base names them"), (None, "abc", "has changed since the run")],
)
def test_start_weights_that_are_not_there_any_more_are_said(origin, fingerprint, missing, start, tmp_path):
    trained = open_trained(write_run(tmp_path / "run", made(), origin or str(start), fingerprint), {})
    base = open_base(trained, None, {})
    assert base.weights is None
    assert base.fingerprint == fingerprint
    assert re.search(missing, base.missing)


def test_weights_without_a_run_need_the_user_s(start, tmp_path):
    trained = open_trained(start, {})
    assert "--base names the start weights" in open_base(trained, None, {}).missing
    assert open_base(trained, start, {}).weights is not None
    with pytest.raises(WeightsError, match="no such file"):
        open_base(trained, tmp_path / "missing", {})
    alone = open_trained(write_checkpoint(tmp_path / "copy", made(), **{"start weights": "abc"}), {})
    assert open_base(alone, None, {}).fingerprint == "abc"


def test_start_weights_that_are_not_the_run_s_are_said(start, tmp_path):
    fingerprint = open_weights(start, {}).fingerprint()
    trained = open_trained(write_run(tmp_path / "run", made(seed=2), str(start), fingerprint), {})
    assert open_base(trained, start, {}).other is None
    save_weights(made(seed=3), tmp_path / "other.pth", torch.float32)
    assert open_base(trained, tmp_path / "other.pth", {}).other == fingerprint
