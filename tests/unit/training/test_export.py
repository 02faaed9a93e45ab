"""Exported weights: a `.pth` for MiniMind, a Hugging Face folder for every model."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM

from minimind.config import parse_settings
from minimind.errors import WeightsError
from minimind.ranks.world import World
from minimind.training.export import export_best, export_weights
from minimind.weights.run_folder import exported_folder
from tests.unit.weights.conftest import llama, minimind

pytestmark = pytest.mark.usefixtures("one_rank")


@pytest.fixture
def exported(tmp_path, tokenizer):
    def run(model, start=None):
        (tmp_path / "run").mkdir()
        state = {name: tensor.detach().float() for name, tensor in model.state_dict().items()}
        prepared = SimpleNamespace(
            settings=parse_settings(["--save_dir", str(tmp_path / "run"), "--hidden_size", "32", "--dtype", "float32"]),
            source=SimpleNamespace(config=model.config, read=lambda name: (start or state)[name]),
            adapters=None,
            tokenizer=tokenizer,
        )
        policy = SimpleNamespace(
            world=World(rank=0, local_rank=0, size=1, device=torch.device("cpu")), full_state=lambda: state
        )
        ticks = []
        moved = export_weights(prepared, policy, lambda: ticks.append(1))
        return sorted(path.name for path in (tmp_path / "run").iterdir()), ticks, moved

    return run


def test_minimind_gets_both_forms(exported, tmp_path):
    names, ticks, moved = exported(minimind("minimind3"))
    assert names == ["dpo_32", "dpo_32.pth"]
    assert ticks
    assert moved == {"moved/float32": 0.0, "moved/float16": 0.0}  # the folder is in float32 too
    assert all(tensor.dtype == torch.float16 for tensor in torch.load(tmp_path / "run" / "dpo_32.pth").values())


def test_other_models_get_a_folder_with_the_same_weights(exported, tmp_path):
    model = llama(tied=False)
    assert exported(model)[0] == ["dpo_32"]
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "dpo_32")
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], tensor, rtol=0, atol=0)


def test_an_export_says_how_many_weights_still_differ_from_the_start(exported):
    model = llama(tied=False)
    start = {name: tensor.detach() * (1 + 1e-6) for name, tensor in model.state_dict().items()}
    *_, moved = exported(model, start)
    # Norms are 1, of which such a change is above float32's spacing too.
    assert moved == {"moved/float32": pytest.approx(1, abs=0.1)}


def test_the_best_weights_replace_the_ones_before_and_are_a_run_s_folder(tmp_path, tokenizer):
    model, run = llama(tied=False), tmp_path / "run"
    run.mkdir()
    (run / "run.json").write_text("{}")
    state = {name: tensor.detach().float() for name, tensor in model.state_dict().items()}
    prepared = SimpleNamespace(
        settings=parse_settings(["--save_dir", str(run), "--hidden_size", "32", "--dtype", "float32"]),
        source=SimpleNamespace(config=model.config),
        adapters=None,
        tokenizer=tokenizer,
    )
    world = World(rank=0, local_rank=0, size=1, device=torch.device("cpu"))
    for step in (2, 4):
        state["lm_head.weight"] = torch.full_like(state["lm_head.weight"], step)
        policy = SimpleNamespace(world=world, full_state=lambda: state)
        export_best(prepared, policy, lambda: None, {"step": step})
    assert sorted(path.name for path in run.iterdir()) == ["best", "run.json"]
    assert sorted(path.name for path in (run / "best").iterdir()) == ["best.json", "dpo_32", "run.json"]
    assert json.loads((run / "best/best.json").read_text()) == {"step": 4}
    again = AutoModelForCausalLM.from_pretrained(exported_folder(run / "best"))
    assert again.lm_head.weight.unique().tolist() == [4.0]
    # A write that fails leaves the old ones.
    (run / "run.json").unlink()
    with pytest.raises(WeightsError, match="best: cannot be written"):
        export_best(prepared, policy, lambda: None, {"step": 6})
    assert json.loads((run / "best/best.json").read_text()) == {"step": 4}
