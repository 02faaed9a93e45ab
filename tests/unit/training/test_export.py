"""Exported weights: a `.pth` for MiniMind, a Hugging Face folder for every model."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM

from minimind.config import parse_settings
from minimind.ranks.world import World
from minimind.training.export import export_weights
from tests.unit.weights.conftest import llama, minimind

pytestmark = pytest.mark.usefixtures("one_rank")


@pytest.fixture
def exported(tmp_path, tokenizer):
    def run(model):
        (tmp_path / "run").mkdir()
        state = {name: tensor.detach().float() for name, tensor in model.state_dict().items()}
        prepared = SimpleNamespace(
            settings=parse_settings(["--save_dir", str(tmp_path / "run"), "--hidden_size", "32", "--dtype", "float32"]),
            source=SimpleNamespace(config=model.config),
            adapters=None,
            tokenizer=tokenizer,
        )
        policy = SimpleNamespace(
            world=World(rank=0, local_rank=0, size=1, device=torch.device("cpu")), full_state=lambda: state
        )
        ticks = []
        export_weights(prepared, policy, lambda: ticks.append(1))
        return sorted(path.name for path in (tmp_path / "run").iterdir()), ticks

    return run


def test_minimind_gets_both_forms(exported, tmp_path):
    names, ticks = exported(minimind("minimind3"))
    assert names == ["dpo_32", "dpo_32.pth"]
    assert ticks
    assert all(tensor.dtype == torch.float16 for tensor in torch.load(tmp_path / "run" / "dpo_32.pth").values())


def test_other_models_get_a_folder_with_the_same_weights(exported, tmp_path):
    model = llama(tied=False)
    assert exported(model)[0] == ["dpo_32"]
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "dpo_32")
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], tensor, rtol=0, atol=0)
