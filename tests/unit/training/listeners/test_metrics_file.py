"""Metrics on disk: one line per event, the monitor's events, and a full disk."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from minimind.training.events import Evaluated, Log, Sampled, Saved, Step
from minimind.training.listeners.metrics_file import MetricsFile


@pytest.fixture
def made(tmp_path):
    written, printed = [], []

    def make(enabled=True, monitored=True):
        listener = MetricsFile(
            folder=tmp_path,
            monitor=SimpleNamespace(enabled=monitored, write_events=written.append, news=lambda: ["TensorBoard fails"]),
            epoch_of=lambda step: step / 3,
            console=SimpleNamespace(say=printed.append),
            enabled=enabled,
        )
        return listener, written, printed

    return make


def test_every_event_is_a_line_and_a_monitor_event(made, tmp_path):
    listener, written, printed = made()
    listener.on_log(Log(step=1, metrics={"loss": 0.5, "rate": 2.0}))
    listener.on_evaluated(Evaluated(step=2, metrics={"eval/loss": 0.4}, items=3))
    listener.on_sampled(Sampled(step=2, metrics={"samples/ended": 1.0}, samples=()))
    listener.on_saved(Saved(step=2, checkpoint=None))
    listener.on_saved(Saved(step=3, checkpoint=None, failures=["disk"]))
    listener.on_saved(Saved(step=4, checkpoint=None, metrics={"moved/float16": 0.5}))
    assert [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [
        {"step": 1, "epoch": 0.333333, "loss": 0.5, "rate": 2.0},
        {"step": 2, "epoch": 0.666667, "eval/loss": 0.4},
        {"step": 2, "epoch": 0.666667, "samples/ended": 1.0},
        {"step": 3, "epoch": 1.0, "save_failed": 1.0},
        {"step": 4, "epoch": 1.333333, "moved/float16": 0.5},
    ]
    assert written == [
        [("loss", 0.5, 1), ("rate", 2.0, 1)],
        [("eval/loss", 0.4, 2)],
        [("samples/ended", 1.0, 2)],
        [("save_failed", 1.0, 3)],
        [("moved/float16", 0.5, 4)],
    ]
    listener.on_step(Step(step=5, last=False))
    assert printed == ["TensorBoard fails"] * 6


def test_other_ranks_write_nothing(made, tmp_path):
    listener, written, _ = made(enabled=False)
    listener.on_log(Log(step=1, metrics={"loss": 0.5}))
    assert written == []
    assert not (tmp_path / "metrics.jsonl").exists()


def test_a_monitor_that_is_off_gets_nothing(made):
    listener, written, _ = made(monitored=False)
    listener.on_log(Log(step=1, metrics={"loss": 0.5}))
    assert written == []


def test_a_folder_that_cannot_be_written_costs_metrics_not_the_run(made, tmp_path):
    listener, _, printed = made(monitored=False)
    (tmp_path / "metrics.jsonl").mkdir()
    for step in (4, 5):
        listener.on_log(Log(step=step, metrics={"loss": 0.5}))
    (line,) = printed
    assert line.startswith("NOT LOGGED: metrics.jsonl: ")
