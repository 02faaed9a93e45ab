"""Plain lines where the output is no terminal; one line that is rewritten where it is."""

from __future__ import annotations

import sys

from minimind.training.console import Console

METRICS = {"loss": 0.6512, "rewards/accuracies": 0.72, "rewards/margins": 0.1234, "tokens_per_second": 12345.6}


def test_plain_lines_when_no_terminal(capsys):
    console = Console(enabled=True)
    console.start(0, 150)
    console.advance(12)
    console.log(12, 0.32, METRICS)
    console.stop()
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("step  12/150  epoch 0.32  loss 0.6512  accuracy 0.72  margin +0.1234  12,346 tok/s")
    assert line.endswith("left")


def test_progress_line_in_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    console = Console(enabled=True)
    console.start(0, 150)
    console.advance(12)
    console.log(12, 0.32, METRICS)
    console.say("saved")
    console.stop()
    out = capsys.readouterr().out
    assert "12/150" in out
    assert "loss 0.6512" in out
    assert "saved" in out
    assert "\r" in out


def test_other_ranks_are_silent(capsys):
    console = Console(enabled=False)
    console.start(0, 10)
    console.log(1, 0.1, METRICS)
    console.say("nothing")
    console.stop()
    assert capsys.readouterr().out == ""
