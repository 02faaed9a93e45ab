"""Plain lines where the output is no terminal; one line that is rewritten where it is."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import struct
import subprocess
import sys
import termios

import pytest

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


IN_A_TERMINAL = """
import json, sys
from minimind.training.console import Console
console = Console(enabled=True)
console.start(0, 150)
console.advance(12)
console.log(12, 0.32, json.loads(sys.argv[1]))
console.say("saved")
console.stop()
"""


@pytest.mark.parametrize(("rows", "has_bar"), [(40, True), (0, False)])
def test_progress_line_in_a_terminal(rows, has_bar):
    """A real pseudo-terminal; one without rows gets plain lines, since a bar would not be seen there."""
    main, child = pty.openpty()
    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", rows, 150, 0, 0))
    done = subprocess.Popen([sys.executable, "-c", IN_A_TERMINAL, json.dumps(METRICS)], stdout=child, stderr=child)
    os.close(child)
    out = b""
    with contextlib.suppress(OSError):  # the end of a pseudo-terminal is an error
        while part := os.read(main, 4096):
            out += part
    os.close(main)
    assert done.wait(timeout=60) == 0
    text = out.decode()
    assert "loss 0.6512" in text
    assert "saved" in text
    assert ("step 12/150 █" in text) == has_bar
    assert ("step  12/150  epoch" in text) != has_bar


def test_other_ranks_are_silent(capsys):
    console = Console(enabled=False)
    console.start(0, 10)
    console.log(1, 0.1, METRICS)
    console.say("nothing")
    console.stop()
    assert capsys.readouterr().out == ""
