"""The tracker of a run: only with its flag, only on rank 0."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from minimind.config import parse_settings
from minimind.ranks.world import World
from minimind.training.setup import tracking

WORLD = World(rank=0, local_rank=0, size=1, device=torch.device("cpu"))


@pytest.fixture
def started(monkeypatch):
    """Arguments of every started run; each becomes the part "part"."""
    calls = []
    monkeypatch.setattr(tracking, "start_tracker", lambda *given: calls.append(given) or "part")
    monkeypatch.setattr(tracking, "from_main", lambda world, function: function())
    return calls


def opened(*flags):
    prepared = SimpleNamespace(
        settings=parse_settings(["--save_dir", "out/mine", *flags]),
        policy_config=SimpleNamespace(values={"wandb": {"team": "ours"}}),
    )
    return tracking.open_tracker(prepared, WORLD), prepared.settings


def test_without_the_flag_nothing_is_started(started):
    assert opened()[0] is None
    assert started == []


def test_rank_0_starts_a_run_with_all_settings(started):
    part, settings = opened("--use_wandb", "--wandb_project", "mine")
    assert part == "part"
    ((project, name, folder, values, section),) = started
    assert (project, name, str(folder), section) == ("mine", "mine", "out/mine", {"team": "ours"})
    assert values == settings.values


def test_other_ranks_start_none(started, monkeypatch):
    monkeypatch.setattr(tracking, "from_main", lambda world, function: None)
    assert opened("--use_wandb")[0] is None
    assert started == []
