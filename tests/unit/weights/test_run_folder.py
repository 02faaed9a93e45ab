"""The weights in the folder of a run: its one exported folder, or an error that lists what is there."""

from __future__ import annotations

import pytest
import torch

from minimind.errors import WeightsError
from minimind.weights.io import save_huggingface
from minimind.weights.run_folder import exported_folder
from minimind.weights.sources import open_weights
from tests.unit.weights.conftest import minimind


def test_a_run_s_folder_stands_for_its_one_folder_of_weights(tokenizer, tmp_path):
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(WeightsError, match="one folder of weights is expected, found: none"):
        open_weights(tmp_path, {})
    model = minimind("minimind2")
    for name in ("dpo_64", "other_64"):
        save_huggingface(model.config, model.state_dict(), tmp_path / name, tokenizer, torch.float32)
        if name == "dpo_64":
            assert open_weights(tmp_path, {}).tokenizer_path == tmp_path / "dpo_64"
    with pytest.raises(WeightsError, match="found: dpo_64, other_64"):
        open_weights(tmp_path, {})


def test_any_other_path_stays(tmp_path):
    assert exported_folder(tmp_path) == tmp_path
    (tmp_path / "run.json").write_text("{}")
    (tmp_path / "config.json").write_text("{}")
    assert exported_folder(tmp_path) == tmp_path
