"""Which signals are caught, when one counts as repeated, and the end of a launcher that a Ctrl-C reaches too."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from signal import SIGINT, SIGKILL, SIGTERM, SIGUSR1

import pytest

from minimind.ranks import signals
from minimind.ranks.signals import STOP_SIGNALS, DeepspeedCommand, Repeats, catch_signals, read_signals


@pytest.fixture
def pipe():
    """Catches the signals for a test; makes the descriptor."""
    handlers = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    yield catch_signals
    os.close(signal.set_wakeup_fd(-1))
    for number, handler in handlers.items():
        signal.signal(number, handler)


def test_signals_are_read_in_the_order_that_says_who_came_first(pipe, monkeypatch):
    """A launcher's SIGTERM after a Ctrl-C: the handler of the later signal may run first."""
    signal.signal(SIGINT, signal.SIG_DFL)  # ignored, where the tests themselves are a background job of a script
    descriptor = pipe()
    os.kill(os.getpid(), SIGTERM)
    monkeypatch.setattr(signals.time, "sleep", lambda seconds: os.kill(os.getpid(), SIGINT))
    assert read_signals(descriptor) == [SIGINT, SIGTERM]


@pytest.mark.parametrize("ignored", [False, True])
def test_an_ignored_interrupt_stays_ignored(ignored, pipe):
    """As in a background job of a shell script."""
    signal.signal(SIGINT, signal.SIG_IGN if ignored else signal.SIG_DFL)
    descriptor = pipe()
    os.kill(os.getpid(), SIGINT)
    os.kill(os.getpid(), SIGUSR1)
    assert read_signals(descriptor) == [*([] if ignored else [SIGINT]), SIGUSR1]


@pytest.mark.parametrize(
    ("first", "second", "seconds", "repeated"),
    [
        (SIGTERM, SIGTERM, 3.0, False),  # a launcher forwards the signal of its process group
        (SIGTERM, SIGTERM, 3.1, True),
        (SIGINT, SIGINT, 1.0, False),
        (SIGINT, SIGINT, 1.1, True),
        (SIGUSR1, SIGTERM, 120.0, False),  # Slurm: early notice, end of the time
    ],
)
def test_repeated_signals(first, second, seconds, repeated):
    repeats = Repeats()
    assert not repeats.again(first, 100.0)
    assert repeats.again(second, 100.0 + seconds) is repeated


@pytest.fixture
def launcher(tmp_path):
    """Starts two processes: an inner launcher, and a command of a given name that stands for its parent."""
    started = []

    def start(name, **options):
        script = tmp_path / name
        script.write_text("import time; print('runs'); time.sleep(600)")
        started.append(subprocess.Popen(["sleep", "600"], **options))
        started.append(subprocess.Popen([sys.executable, "-u", str(script)], stdout=subprocess.PIPE, **options))
        # Right after its start a process has no command line yet.
        assert started[-1].stdout.readline()
        return started

    yield start
    for process in started:
        process.kill()
        process.wait()
    started[-1].stdout.close()


def test_deepspeed_command_of_this_process_group_ends_without_a_traceback(launcher):
    processes = launcher("deepspeed")
    DeepspeedCommand([process.pid for process in processes]).end()
    assert [process.wait(60) for process in processes] == [-SIGKILL, -SIGTERM]


@pytest.mark.parametrize(
    ("name", "options", "number"),
    [("deepspeed", {"start_new_session": True}, 2), ("torchrun", {}, 2), ("deepspeed", {}, 1)],
    ids=["another process group", "another command", "one process"],
)
def test_other_launchers_are_left_alone(name, options, number, launcher):
    processes = launcher(name, **options)
    DeepspeedCommand([process.pid for process in processes[:number]]).end()
    # A signal would have arrived by the time a later one has.
    for process in processes:
        process.send_signal(SIGUSR1)
    assert [process.wait(60) for process in processes] == [-SIGUSR1, -SIGUSR1]


def test_command_that_has_ended_is_no_error(launcher):
    processes = launcher("deepspeed")
    command = DeepspeedCommand([process.pid for process in processes])
    for process in processes:
        process.kill()
        process.wait()
    command.end()
