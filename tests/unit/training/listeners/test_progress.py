"""Progress: lines of logged steps and evaluations, with the columns of the job."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from minimind.training.console import Console
from minimind.training.events import End, Evaluated, Log, Sampled, Start, Step
from minimind.training.jobs.job import Column
from minimind.training.listeners.progress import Progress

MARGIN = Column(metric="rewards/margins", label="margin", format="+.2f", eval_format="+.4f")


@pytest.fixture
def progress():
    job = SimpleNamespace(columns=(MARGIN,), item="pairs", examples="")
    return Progress(console=Console(enabled=True), epoch_of=lambda step: step / 10, job=job)


def test_a_logged_step(progress, capsys):
    progress.on_start(Start(step=0, total_steps=20))
    progress.on_step(Step(step=5, last=False))
    progress.on_log(Log(step=5, metrics={"loss": 0.65123, "rewards/margins": 0.129, "tokens_per_second": 12345.6}))
    progress.on_end(End(step=5, finished=False))
    line = capsys.readouterr().out
    assert line.startswith("step  5/20  epoch 0.50  loss 0.6512  margin +0.13  12,346 tok/s  ")
    assert line.endswith(" left\n")


def test_an_evaluation(progress, capsys):
    progress.on_evaluated(Evaluated(step=7, metrics={"eval/loss": 0.5, "eval/rewards/margins": -0.2}, items=100))
    assert capsys.readouterr().out == "evaluation at step 7: loss 0.5000, margin -0.2000 (100 held-out pairs)\n"


def test_an_evaluation_of_a_set_with_a_name(progress, capsys):
    metrics = {"eval/zh/loss": 0.5, "eval/zh/rewards/margins": -0.2}
    progress.on_evaluated(Evaluated(step=7, metrics=metrics, items=100, name="zh"))
    assert capsys.readouterr().out == "evaluation of zh at step 7: loss 0.5000, margin -0.2000 (100 held-out pairs)\n"


def test_samples(progress, capsys):
    metrics = {"samples/length": 12.25, "samples/ended": 0.75, "samples/empty": 0.0, "samples/distinct_3": 0.9}
    progress.on_sampled(Sampled(step=7, metrics=metrics, samples=[None] * 4))
    assert capsys.readouterr().out == (
        "samples at step 7: 4 answers of 12.2 tokens, 75% ended by itself, 0% empty, 10% repeated 3-grams\n"
    )
