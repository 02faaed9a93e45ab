"""Starting a run and waiting for it, with small programs in place of the launcher."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time

import pytest

from minimind.errors import LaunchError
from minimind.ranks.exits import PREEMPTED
from minimind.sweep import execute
from minimind.sweep.execute import LOG, Stop, deepspeed_command, launch
from minimind.sweep.plan import STARTED, write_record
from tests.unit.sweep.made import plans


@pytest.fixture
def plan(tmp_path):
    (found,) = plans(tmp_path, "--beta", "0.1")
    write_record(found, STARTED)
    (found.folder / LOG).touch()  # the tests' threads read it while the launcher is started
    return found


@pytest.fixture
def program(tmp_path, monkeypatch):
    """Puts a Python program in the launcher's place."""

    def use(text):
        path = tmp_path / "launcher"
        path.write_text(f"#!{sys.executable}\n{text}")
        path.chmod(0o755)
        monkeypatch.setattr(execute, "deepspeed_command", lambda: str(path))

    return use


def test_arguments_output_and_status(plan, program, capsys):
    (plan.folder / LOG).write_text("of an earlier start\n")
    program("import sys; print(*sys.argv[1:]); print('to stderr', file=sys.stderr); sys.exit(7)")
    assert launch(plan, ["--num_gpus=2"], Stop()) == 7
    shown = capsys.readouterr().out
    words = next(line for line in shown.splitlines() if "--num_gpus" in line).split()
    assert words[0] == "--num_gpus=2"
    assert words[1].endswith("launch/train_dpo.py")
    assert words[2:] == plan.argv
    assert "to stderr" in shown
    assert "of an earlier start" not in shown
    assert (plan.folder / LOG).read_text() == f"of an earlier start\n{shown}"


@pytest.mark.parametrize("how", ["sys.exit(75)", "sys.exit(143)", "os.kill(os.getpid(), 15)"])
def test_a_run_that_something_else_stops_is_stopped(plan, program, how):
    program(f"import os, sys; {how}")
    assert launch(plan, [], Stop()) == PREEMPTED


def test_a_signal_ends_the_launcher_and_waits_for_the_ranks(plan, program, capsys):
    """The launcher leaves a rank that holds the folder's lock for a while, as one that saves does."""
    program(
        f"""
import fcntl, os, signal, subprocess, sys, time
rank = "import fcntl, time; f = open({str(plan.folder / ".lock")!r}, 'w'); fcntl.flock(f, fcntl.LOCK_EX); " \\
       "print('locked', flush=True); time.sleep(2.5); print('rank has saved', flush=True)"
subprocess.Popen([sys.executable, "-c", rank])
time.sleep(60)
"""
    )
    with Stop().listening() as stop:

        def interrupt():
            while "locked" not in (plan.folder / LOG).read_text():
                time.sleep(0.05)
            os.kill(os.getpid(), signal.SIGINT)

        thread = threading.Thread(target=interrupt)
        thread.start()
        assert launch(plan, [], stop) == PREEMPTED
        thread.join()
    assert (stop.number, stop.again) == (signal.SIGINT, False)
    assert "rank has saved" in capsys.readouterr().out


def test_a_second_signal_ends_all_at_once(plan, program, monkeypatch):
    monkeypatch.setattr(execute, "_REPEAT_SECONDS", 0.0)
    deaf = "signal.signal(signal.SIGTERM, signal.SIG_IGN)"
    program(f"import signal, time; {deaf}; print('up', flush=True); time.sleep(60)")
    with Stop().listening() as stop:

        def interrupt():
            while "up" not in (plan.folder / LOG).read_text():
                time.sleep(0.05)
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(0.5)

        thread = threading.Thread(target=interrupt)
        thread.start()
        started = time.monotonic()
        assert launch(plan, [], stop) == PREEMPTED
        thread.join()
    assert stop.again
    assert time.monotonic() - started < 30


def test_a_missing_launcher_is_an_error(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LaunchError, match="the deepspeed launcher is not installed"):
        deepspeed_command()
