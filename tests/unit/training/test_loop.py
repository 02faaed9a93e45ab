"""A run whose states swap to NVMe: weights instead of checkpoints, and nothing is promised that cannot be kept."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from minimind.config import DPOConfig, RunConfig
from minimind.errors import CheckpointError, TrainingError, WeightsError
from minimind.ranks.process import World
from minimind.training import loop

pytestmark = pytest.mark.usefixtures("one_rank")


@pytest.fixture
def run(tmp_path):
    """After two of five steps, without checkpoints; `said` and `exports` are what it has told and written."""
    said, exports = [], []
    world = World(rank=0, local_rank=0, size=1, device=torch.device("cpu"))
    world.watch.timeout = 60.0
    return SimpleNamespace(
        config=DPOConfig(run=RunConfig(save_dir=str(tmp_path))),
        world=world,
        policy=SimpleNamespace(train=lambda: None, learning_rate=0.1, grad_norm=torch.tensor(1.0)),
        reference=None,
        objective=None,
        table=None,
        stream=SimpleNamespace(position_after=lambda step: {}, epoch_of=lambda step: 0.5),
        layout=None,
        total_steps=5,
        unlogged={},
        checkpoints=None,
        export=lambda: exports.append("weights"),
        console=SimpleNamespace(
            say=said.append, start=lambda *_: None, advance=lambda step: None, stop=lambda: None, log=lambda *_: None
        ),
        said=said,
        exports=exports,
    )


def test_a_stop_leaves_the_weights_and_says_that_the_run_is_over(run, monkeypatch):
    monkeypatch.setattr(loop, "train_batches", lambda *_, start, end, **__: ([] for _ in range(start, end + 1)))
    monkeypatch.setattr(loop, "train_step", lambda *_: None)
    run.world.watch.stop_reason = "SIGUSR1"
    with pytest.raises(TrainingError, match=r"SIGUSR1: stopped after step 3\. .* no going on: start anew") as caught:
        loop.train(run, 2)
    assert caught.value.agreed
    assert run.exports == ["weights"]
    assert not any("--from_resume" in line for line in run.said)


def test_weights_that_cannot_be_written_at_the_end_are_an_error_without_a_way_back(run):
    since = SimpleNamespace(unlogged=dict)
    loop.save(run, 4, since, last=False)
    assert run.exports == ["weights"]

    def fail():
        raise WeightsError("the disk is full")

    run.export = fail
    with pytest.raises(CheckpointError, match=r"the disk is full.*no whole checkpoint\. Make room, and start anew"):
        loop.save(run, 5, since, last=True)
