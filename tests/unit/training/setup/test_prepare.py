"""Preparation of a run: stages, paths, and problems of all stages in one error."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from minimind import demo
from minimind.checkpoints.find import Checkpoint
from minimind.checkpoints.manifest import Manifest
from minimind.config import parse_settings
from minimind.errors import ConfigError
from minimind.ranks.world import World
from minimind.training.setup import prepare as module
from minimind.training.setup.prepare import cache_dir, input_paths, prepare, reference_path
from tests.conftest import REPO

WORLD = World(rank=0, local_rank=0, size=1, device=torch.device("cpu"))
ZERO2 = ("--deepspeed", str(REPO / "ds_configs/zero2.json"))


def test_the_demo_is_prepared_from_nothing_but_a_deepspeed_file(tmp_path):
    prepared = prepare(parse_settings([*ZERO2, "--save_dir", str(tmp_path)]), WORLD)
    config, origins = prepared.settings.config, prepared.settings.origins
    assert prepared.is_demo
    assert (config.data.data_path, origins["data_path"]) == ((str(demo.TRAIN_PATH),), "demo")
    assert (config.model.hidden_size, origins["hidden_size"]) == (96, "weights")
    assert (prepared.policy_config.stage, prepared.reference_config.stage) == (2, 3)
    # Every path that the run uses is in its settings, so that run.json is complete.
    assert config.engine.reference_config == str(REPO / "ds_configs/reference.json")
    assert Path(config.data.cache_dir).name == "minimind"


def test_the_last_settings_are_those_of_the_deepspeed_file(tmp_path):
    path = tmp_path / "ds.json"
    path.write_text('{"zero_optimization": {"stage": 1}, "bf16": {"enabled": false}, "gradient_clipping": 0.5}')
    settings = prepare(parse_settings(["--deepspeed", str(path), "--save_dir", str(tmp_path)]), WORLD).settings
    assert (settings.config.optimisation.grad_clip, settings.origins["grad_clip"]) == (0.5, "DeepSpeed file")
    assert settings.config.optimisation.dtype == "float32"


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ((), ("cut", "default")),
        (("--on_bad_row", "skip"), ("cut", "default")),
        (("--on_bad_row", "keep"), ("keep", "--on_bad_row keep")),
        (("--on_bad_row", "keep", "--on_long_row", "keep"), ("keep", "flag")),
    ],
)
def test_on_bad_row_keep_sets_on_long_row(flags, expected, tmp_path):
    settings = prepare(parse_settings([*ZERO2, "--save_dir", str(tmp_path), *flags]), WORLD).settings
    assert (settings.config.data.on_long_row, settings.origins["on_long_row"]) == expected


def test_defaults_follow_the_weights_and_a_resumed_run(tmp_path):
    """The demo's weights are of generation 3."""

    def values(checkpoint=None):
        prepared = prepare(parse_settings([*ZERO2, "--save_dir", str(tmp_path)]), WORLD, checkpoint)
        settings = prepared.settings
        names = ("average_log_prob", "beta", "empty_think_ratio")
        assert prepared.objective.options()["beta"] == settings.values["beta"]
        return [settings.values[name] for name in names], {settings.origins[name] for name in names}

    assert values() == ([False, 0.15, 0.2], {"generation 3"})
    identity = {"loss": "sigmoid", "beta": 0.1, "average_log_prob": True, "dtype": "bfloat16"}
    batch = {"batch_size": 8, "accumulation_steps": 1}
    manifest = Manifest(step=1, stream={}, files={}, identity=identity, batch=batch, sharding={"ranks": 1})
    earlier = Checkpoint(path=tmp_path, manifest=manifest, damaged={})
    assert values(earlier) == ([True, 0.1, 1.0], {"checkpoint"})


def test_flags_of_the_schedule_are_resolved_and_compared(tmp_path):
    flags = [*ZERO2, "--save_dir", str(tmp_path), "--lr_schedule", "wsd", "--warmup_ratio", "0.25"]
    settings = prepare(parse_settings(flags), WORLD).settings
    assert (settings.values["decay_ratio"], settings.origins["decay_ratio"]) == (0.1, "default")
    with pytest.raises(ConfigError, match="--warmup_steps and --warmup_ratio both say"):
        prepare(parse_settings([*flags, "--warmup_steps", "3"]), WORLD)


def test_losses_of_labelled_answers_count_the_last_turn_alone(tmp_path):
    flags = [*ZERO2, "--save_dir", str(tmp_path), "--loss", "bco:1,kto:2"]
    settings = prepare(parse_settings(flags), WORLD).settings
    assert settings.config.data.last_turn_only
    assert settings.origins["last_turn_only"] == "--loss bco:1,kto:2"
    assert prepare(parse_settings([*flags, "--last_turn_only", "1"]), WORLD).settings.config.data.last_turn_only
    with pytest.raises(ConfigError, match="--last_turn_only 0: --loss bco:1,kto:2 counts the labelled answer alone"):
        prepare(parse_settings([*flags, "--last_turn_only", "0"]), WORLD)


def test_problems_of_all_stages_are_one_error(tmp_path):
    flags = ["--data_path", str(tmp_path / "none.jsonl"), "--from_weight", "nowhere", "--eval_interval", "3"]
    with pytest.raises(ConfigError) as caught:
        prepare(parse_settings(flags), WORLD)
    message = str(caught.value)
    assert message.startswith("5 problems:")
    for part in (
        "none.jsonl: no such preference file",
        "--from_weight nowhere: no such file or folder",
        "nowhere contains no tokenizer",
        "--deepspeed FILE is missing",
        "--eval_interval needs held-out pairs",
    ):
        assert part in message


def test_a_single_problem_is_raised_as_it_is():
    with pytest.raises(ConfigError, match=r"^--deepspeed FILE is missing"):
        prepare(parse_settings([]), WORLD)


def test_input_paths_name_the_flag_of_each_file(tmp_path):
    (tmp_path / "c.jsonl").touch()
    data = ["a.jsonl", f"{tmp_path}/*.jsonl:2"]
    flags = ["--data_path", *data, "--from_weight", "b.pth", "--save_dir", str(tmp_path), *ZERO2]
    assert input_paths(parse_settings(flags).config) == {
        "--data_path": Path("a.jsonl"),
        "--data_path, file 2,": tmp_path / "c.jsonl",
        "--from_weight": tmp_path / "b.pth_512.pth",
        "--deepspeed": Path(ZERO2[1]),
        "--reference_config": REPO / "ds_configs/reference.json",
    }


def test_fresh_and_demo_weights_are_no_input():
    assert "--from_weight" not in input_paths(parse_settings(["--from_weight", "none", "--data_path", "a"]).config)
    assert "--from_weight" not in input_paths(parse_settings([]).config)


def test_cache_dir_follows_the_flag_then_the_environment(monkeypatch, tmp_path):
    assert cache_dir(parse_settings(["--cache_dir", "here"]).config) == Path("here")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_dir(parse_settings([]).config) == tmp_path / "minimind"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_dir(parse_settings([]).config) == Path.home() / ".cache" / "minimind"


def test_missing_home_directory_is_said_with_the_flag(monkeypatch):
    """As in a container for a user without HOME and without an entry among the users."""
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    with pytest.raises(ConfigError, match=r"no home directory \(HOME\).*give --cache_dir"):
        cache_dir(parse_settings([]).config)


def test_the_reference_s_file_follows_the_flag():
    assert reference_path(parse_settings(["--reference_config", "mine.json"]).config) == Path("mine.json")
    assert reference_path(parse_settings([]).config).is_file()
    assert module.reference_path is reference_path
