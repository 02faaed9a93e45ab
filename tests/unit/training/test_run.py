"""The order of a run's stages, and what a resume loads and prints."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from minimind.config import DPOConfig, parse_settings
from minimind.errors import ConfigError
from minimind.ranks.watch import Watch
from minimind.ranks.world import World
from minimind.training import run as module
from minimind.training.events import Events, Listener

WORLD = World(rank=0, local_rank=0, size=1, device=torch.device("cpu"))


class Counter(Listener):
    name = "counter"
    count = 0

    def restore(self, state):
        self.count = state["count"]


@pytest.fixture
def resumed(tmp_path, monkeypatch, capsys):
    """Resumes a run from a checkpoint after step 3; returns the loaded checkpoint, the listener and the output."""
    monkeypatch.setattr(module, "from_main", lambda world, action: action())
    (tmp_path / "metrics.jsonl").write_text('{"step": 3}\n{"step": 4}\n')

    def run(checkpoint, *flags):
        loaded, counter, events = [], Counter(), Events()
        events.add(counter)
        prepared = SimpleNamespace(
            settings=parse_settings(["--save_dir", str(tmp_path), *flags]), checkpoint=checkpoint
        )
        opened = SimpleNamespace(
            start=3,
            described={"sharding": {"ranks": 1}},
            checkpoints=SimpleNamespace(load=lambda policy, one, moving: loaded.append(one)),
        )
        console = module.Console(enabled=True)
        run = SimpleNamespace(world=WORLD, watch=Watch(), policy=None, events=events)
        module._resume(prepared, opened, run, SimpleNamespace(moving=None), console)
        return loaded, counter.count, capsys.readouterr().out

    return run


def checkpoint(**damaged):
    manifest = SimpleNamespace(sharding={"ranks": 1}, listeners={"counter": {"count": 5}})
    return SimpleNamespace(path=Path("step00000003"), manifest=manifest, damaged=damaged)


def test_a_resume_loads_states_and_removes_later_metrics(resumed, tmp_path):
    one = checkpoint()
    loaded, count, printed = resumed(one, "--from_resume", "1")
    assert loaded == [one]
    assert count == 5
    assert printed == "  resuming after step 3\n"
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 3}\n'


def test_damaged_checkpoints_are_named(resumed):
    _, _, printed = resumed(checkpoint(step00000004="a file is missing"), "--from_resume", "1")
    assert "step00000004 is damaged and renamed to step00000004.damaged: a file is missing" in printed


def test_a_fresh_run_loads_nothing(resumed, tmp_path):
    assert resumed(None) == ([], 0, "")
    assert resumed(None, "--from_resume", "1") == ([], 0, f"  no checkpoint in {tmp_path}: starting at step 0\n")


@pytest.mark.parametrize(("local_rank", "agreed"), [("0", False), ("1", True)])
def test_the_first_rank_of_a_machine_reports_wrong_flags(monkeypatch, local_rank, agreed):
    monkeypatch.setenv("LOCAL_RANK", local_rank)
    with pytest.raises(ConfigError) as caught:
        module._parse(["--no_such_flag", "1"], DPOConfig)
    assert caught.value.agreed == agreed


def test_paths_and_local_resources_may_differ_between_ranks(monkeypatch):
    seen = {}
    monkeypatch.setattr(module, "check_alike", lambda world, settings, files, folder: seen.update(settings))
    module._check_ranks_alike(parse_settings([]), WORLD)
    assert "--beta" in seen
    assert not {"--data_path", "--num_workers", "--cache_dir", "--from_weight"} & set(seen)
