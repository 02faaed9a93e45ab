"""Exit statuses of real child processes, and their texts."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys

import pytest

from minimind.ranks.exits import CRASHED, FAILED, PREEMPTED, describe_exit, leave, read_exit_status


@pytest.fixture
def ended_child():
    """Runs Python code in a child and waits for its end, without reaping it; returns its process id."""
    children = []

    def run(code: str) -> int:
        child = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
        children.append(child)
        # WNOWAIT leaves the exit status readable in /proc.
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        return child.pid

    yield run
    for child in children:
        child.wait()


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("pass", 0),
        ("raise SystemExit(1)", FAILED),
        ("raise SystemExit(75)", PREEMPTED),
        ("import os; os.kill(os.getpid(), 9)", -signal.SIGKILL),
        ("import os; os.kill(os.getpid(), 15)", -signal.SIGTERM),
    ],
)
def test_status_of_an_ended_process(code, status, ended_child):
    assert read_exit_status(ended_child(code)) == status


def test_status_is_read_past_a_command_name_with_spaces_and_parentheses(ended_child):
    code = "open('/proc/self/comm', 'w').write('a) b (c'); raise SystemExit(3)"
    assert read_exit_status(ended_child(code)) == 3


def test_status_of_a_reaped_process_is_unknown():
    child = subprocess.Popen(["true"])
    child.wait()
    assert read_exit_status(child.pid) is None


@pytest.mark.parametrize("path", ["/dev/full", None], ids=["full disk", "closed"])
def test_a_rank_leaves_although_its_output_cannot_be_written(path, monkeypatch, tmp_path):
    statuses = []
    monkeypatch.setattr(os, "_exit", statuses.append)
    with open(path or tmp_path / "output", "w") as output:
        if path is None:
            output.close()
        else:
            # Every flush fails, as the last one here would.
            output.write("not written yet")
        monkeypatch.setattr(sys, "stdout", output)
        monkeypatch.setattr(sys, "stderr", output)
        leave(CRASHED, "last words")
        monkeypatch.undo()
        with contextlib.suppress(OSError):
            output.close()
    assert statuses == [CRASHED]


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (None, "it was killed or it exited; see the launcher's output"),
        (-signal.SIGKILL, "killed by SIGKILL"),
        (-signal.SIGSEGV, "killed by SIGSEGV"),
        (CRASHED, "an error ended it; see its traceback"),
        (3, "it exited with status 3"),
        (0, "it exited with status 0"),
    ],
)
def test_description_of_an_exit(status, text):
    assert describe_exit(status) == text
