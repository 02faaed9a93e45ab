"""The console prints plain lines, or rewrites one line if the output is a terminal."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import struct
import sys
import termios

import pytest

from minimind.training import console
from minimind.training.console import Console
from tests.forked import forked

PARTS = ("epoch 0.32", "loss 0.6512", "12,346 tok/s")


def test_plain_lines_when_no_terminal(capsys):
    console = Console(enabled=True)
    console.start(0, 150)
    console.advance(12)
    console.log(12, PARTS)
    console.stop()
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("step  12/150  epoch 0.32  loss 0.6512  12,346 tok/s  ")
    assert line.endswith("left")


def in_a_terminal(terminal):
    """What a run prints there."""
    for target in (1, 2):
        os.dup2(terminal, target)
    sys.stdout, sys.stderr = (open(target, "w", closefd=False) for target in (1, 2))  # noqa: SIM115 - until its end
    shown = Console(enabled=True)
    shown.start(0, 150)
    shown.advance(12)
    shown.log(12, PARTS)
    shown.say("saved")
    shown.stop()
    sys.stdout.flush()


@pytest.mark.parametrize(("rows", "has_bar"), [(40, True), (0, False)])
def test_progress_line_in_a_terminal(rows, has_bar):
    """A real pseudo-terminal. One without rows gets plain lines, because it would not show a bar."""
    main, child = pty.openpty()
    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", rows, 150, 0, 0))
    with forked(in_a_terminal, child) as process:
        os.close(child)
        out = b""
        with contextlib.suppress(OSError):  # reading past the end of a pseudo-terminal raises OSError
            while part := os.read(main, 4096):
                out += part
        os.close(main)
        process.join(60)
        assert process.exitcode == 0
    text = out.decode()
    assert "loss 0.6512" in text
    assert "saved" in text
    assert ("step 12/150 █" in text) == has_bar
    assert ("step  12/150  epoch" in text) != has_bar


def test_output_that_cannot_be_written_does_not_stop_training(monkeypatch):
    console = Console(enabled=True)
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        console.start(0, 150)
        console.log(12, PARTS)
        console.say("saved")
        monkeypatch.undo()
        with contextlib.suppress(OSError):
            full.close()


def test_other_ranks_are_silent(capsys):
    console = Console(enabled=False)
    console.start(0, 10)
    console.log(1, PARTS)
    console.say("nothing")
    console.stop()
    assert capsys.readouterr().out == ""


@pytest.fixture
def seconds(monkeypatch):
    """The console's clock, which the test sets."""
    now = [100.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    return now


def test_work_is_shown_in_a_log_if_it_takes_long_and_then_now_and_then(capsys, seconds):
    shown = Console(enabled=True)
    for second in (100, 104, 105, 106, 134, 135, 140):
        seconds[0] = second
        shown.show(f"at {second}", 0.5)
    shown.end_show("done")
    assert capsys.readouterr().out.splitlines() == ["at 105", "at 135", "done"]
    shown.show("again", 0.5)
    shown.end_show("done at once")
    assert capsys.readouterr().out == ""


def test_work_in_a_terminal_rewrites_one_line(capsys, seconds, monkeypatch):
    monkeypatch.setattr(console, "_is_terminal", lambda: True)
    shown = Console(enabled=True)
    for second in (100, 105, 110):
        seconds[0] = second
        shown.show(f"at {second}", second / 200)
    shown.say("a message")
    shown.end_show("done")
    out = capsys.readouterr().out
    assert "at 110" in out
    assert "█" in out
    assert "a message\n" in out
    assert out.endswith("done\n")
