"""The runs of the chain: valid commands, each started from the weights of the one before, and what they improve."""

from __future__ import annotations

import json

import pytest

from minimind.chain.stages import SEED, STAGES, new_model
from minimind.config import DPOConfig, PretrainConfig, SFTConfig, parse_settings
from minimind.errors import DataError
from minimind.training.setup.start_weights import open_start_weights
from minimind.weights.sources import RandomSource

JOBS = {"pretrain": PretrainConfig, "sft": SFTConfig, "dpo": DPOConfig}


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
def test_a_command_is_that_of_its_job(stage, tmp_path):
    job = JOBS[stage.name]
    script, *flags = stage.command(tmp_path, None, 128)
    assert script.endswith(job.script)
    config = parse_settings(flags, job).config
    assert (config.model.from_weight, config.model.hidden_size) == ("none", 128)
    assert open_start_weights(config).fingerprint() == RandomSource(new_model(128), SEED).fingerprint()
    assert stage.written(tmp_path, 128).name == f"{config.run.save_weight}_128"
    start = tmp_path / "start"
    assert parse_settings(stage.command(tmp_path, start, 128)[1:], job).config.model.from_weight == str(start)


@pytest.mark.parametrize(("name", "values", "better"), [("pretrain", (50.0, 9.0), True), ("sft", (0.5, 0.4), False)])
def test_progress_is_that_of_the_first_and_the_last_evaluation(name, values, better, tmp_path):
    stage = next(one for one in STAGES if one.name == name)
    (tmp_path / name).mkdir()
    entries = [{"step": 0, f"eval/{stage.metric}": values[0]}, {"step": 1, "loss": 1.0}]
    entries += [{"step": 2, f"eval/{stage.metric}": 20.0}, {"step": 3, f"eval/{stage.metric}": values[1]}]
    (tmp_path / name / "metrics.jsonl").write_text("\n".join([*map(json.dumps, entries), '{"step": 4, "ev']))
    progress = stage.progress(tmp_path)
    assert (progress.before, progress.after, progress.is_better) == (*values, better)
    assert ("NOT BETTER" in progress.describe()) is not better


def test_a_run_that_has_not_evaluated_is_named(tmp_path):
    with pytest.raises(DataError, match=r"sft/metrics\.jsonl: has no eval/token_accuracy"):
        STAGES[1].progress(tmp_path)
