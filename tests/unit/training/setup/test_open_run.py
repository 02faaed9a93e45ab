"""Opening a run: a fresh one, one without checkpoints, and one that resumes."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch

from minimind.checkpoints.find import Checkpoint
from minimind.checkpoints.manifest import Manifest
from minimind.config import parse_settings
from minimind.data.mix import Mix
from minimind.data.sampler import PairSampler
from minimind.errors import CheckpointError
from minimind.model.configuration import MiniMindConfig
from minimind.objective.choice import choose_objective
from minimind.ranks.watch import Watch
from minimind.ranks.world import World
from minimind.training.setup.open_run import find_resumed, open_run
from minimind.training.setup.resume import START_WEIGHTS
from minimind.training.setup.training_data import TrainingData

pytestmark = pytest.mark.usefixtures("one_rank")
WORLD = World(rank=0, local_rank=0, size=1, device=torch.device("cpu"))
ADAMW = {"type": "AdamW", "params": {"lr": 0.1}}


@pytest.fixture
def opened(tmp_path):
    """Opens a run in tmp_path; `manifest` is that of the checkpoint that it resumes."""

    def run(*flags, zero=None, manifest=None, watch=None, other=None):
        stream = PairSampler(
            mix=Mix.plain(10), epochs=1, micro_batch_size=2, accumulation_steps=1, world_size=1, shuffle=True, seed=42
        )
        table = type("Table", (), {"key": "data", "__len__": lambda self: 10})()
        values = {"optimizer": ADAMW, "zero_optimization": zero or {"stage": 2}}
        settings, objective = choose_objective(parse_settings(["--save_dir", str(tmp_path), *flags]))
        source = SimpleNamespace(
            config=MiniMindConfig(), origin="none", shapes=lambda: {"w": (4, 5)}, fingerprint=lambda: "abc"
        )
        prepared = SimpleNamespace(
            settings=settings,
            objective=objective,
            other_reference=other,
            reference_source=other or source,
            checkpoint=manifest and Checkpoint(path=tmp_path / "step00000003", manifest=manifest, damaged={}),
            adapters=None,
            source=source,
            policy_config=SimpleNamespace(stage=2, values=values, overridden={}),
            reference_config=SimpleNamespace(values={}),
        )
        data = TrainingData(table=table, eval_table=None, stream=stream, total_steps=5)
        console = SimpleNamespace(say=lambda line: None)
        return open_run(prepared, data, WORLD, watch or Watch(), console), stream

    return run


def test_a_fresh_run_starts_at_step_0_in_a_new_folder(opened, tmp_path):
    run, _ = opened()
    assert (run.start, run.reference, run.reference_fingerprint) == (0, START_WEIGHTS, "abc")
    assert run.checkpoints.folder == tmp_path / "checkpoints"
    assert json.loads((tmp_path / "run.json").read_text())["identity"] == run.described["identity"]


def test_a_resumed_run_starts_after_its_checkpoint(opened):
    fresh, stream = opened()
    manifest = Manifest(step=3, stream=stream.position_after(3), files={}, **fresh.described)
    run, _ = opened(manifest=manifest)
    assert run.start == 3


def weights(fingerprint, **sizes):
    return SimpleNamespace(config=MiniMindConfig(**sizes), fingerprint=lambda: fingerprint)


def test_a_resumed_run_keeps_its_reference(opened):
    """A manifest without one is of a run that had the start weights; equal weights elsewhere are the same reference."""
    fresh, stream = opened()
    identity = {name: value for name, value in fresh.described["identity"].items() if name != "reference weights"}
    older = Manifest(step=3, stream=stream.position_after(3), files={}, **{**fresh.described, "identity": identity})
    run, _ = opened(manifest=older, other=weights("abc"))
    assert run.reference == START_WEIGHTS
    for other in (weights("another"), weights("abc", rope_theta=5e5)):
        with pytest.raises(CheckpointError, match=r"reference weights was 'the start weights', is '[0-9a-f]{16}'"):
            opened(manifest=older, other=other)
    moved, _ = opened(other=weights("another"))
    assert moved.reference_fingerprint == "another"
    manifest = Manifest(step=3, stream=stream.position_after(3), files={}, **moved.described)
    assert opened(manifest=manifest, other=weights("another"))[0].reference == moved.reference
    with pytest.raises(CheckpointError, match="reference weights was"):
        opened(manifest=manifest)


def test_a_checkpoint_of_another_run_is_refused_before_the_folder_is_touched(opened, tmp_path):
    fresh, stream = opened()
    written = (tmp_path / "run.json").read_bytes()
    manifest = Manifest(step=3, stream=stream.position_after(3), files={}, **fresh.described)
    with pytest.raises(CheckpointError, match=r"beta was 0\.1, is 0\.9"):
        opened("--beta", "0.9", manifest=manifest)
    assert (tmp_path / "run.json").read_bytes() == written


def test_states_on_nvme_mean_no_checkpoints(opened):
    watch = Watch()
    run, _ = opened(zero={"stage": 3, "offload_optimizer": {"device": "nvme"}}, watch=watch)
    assert run.checkpoints is None
    assert "start anew" in watch.hint


def test_without_the_flag_no_checkpoint_is_looked_for(tmp_path):
    assert find_resumed(parse_settings(["--save_dir", str(tmp_path)]).config, WORLD, Watch()) is None


def test_a_folder_without_checkpoints_is_a_fresh_start(tmp_path):
    config = parse_settings(["--save_dir", str(tmp_path), "--from_resume", "1"]).config
    assert find_resumed(config, WORLD, Watch()) is None
