"""Signals that ask a run to stop: how this process catches them, and the launcher that a Ctrl-C reaches too.

SIGINT, SIGTERM, SIGUSR1 -> pipe -> watch thread (watch.py) -> Repeats.again -> stop after the step, or exit at once

A Ctrl-C goes to all processes of the terminal's foreground group: the ranks and, under deepspeed, both processes of the
launcher. These would end a run that is saving: the inner one kills ranks after 30 seconds.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
# The same signal again, so long after the first, ends the process at once. Within this time it counts as the same
# request: a launcher forwards a signal that its whole process group has received. SIGINT is a person's second Ctrl-C.
_REPEAT_SECONDS = 3.0
_REPEAT_INTERRUPT_SECONDS = 1.0
# In this time the handlers of two waiting signals have both run.
_REORDER_SECONDS = 0.05


def catch_signals() -> int:
    """Descriptor of a pipe into which Python writes the number of every signal, even if the main thread is busy."""
    reading, writing = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    for number in STOP_SIGNALS:
        # A shell script starts its background jobs with SIGINT ignored: a Ctrl-C there means another program.
        if number != signal.SIGINT or signal.getsignal(number) != signal.SIG_IGN:
            # Without a handler the default action would end the process.
            signal.signal(number, lambda *_: None)
    return reading


def read_signals(descriptor: int) -> list[signal.Signals]:
    """The signals that have come, from the descriptor of `catch_signals`, SIGINT before SIGTERM."""
    numbers = os.read(descriptor, 64)
    if signal.SIGTERM in numbers:
        # deepspeed's launcher answers a Ctrl-C by SIGTERM. Of two waiting signals the kernel runs the later one first.
        time.sleep(_REORDER_SECONDS)
        with contextlib.suppress(BlockingIOError):
            numbers += os.read(descriptor, 64)
    return [signal.Signals(number) for number in sorted(numbers)]


class Repeats:
    """Tells a repeated request to stop from the same one that arrives twice.

    A different signal is no repetition: Slurm sends SIGUSR1 as an early notice and SIGTERM at the end of the time.
    """

    def __init__(self) -> None:
        self._first_at: dict[int, float] = {}

    def again(self, number: signal.Signals, now: float) -> bool:
        """Whether a signal that arrives at time `now` (seconds, monotonic clock) repeats an earlier one."""
        within = _REPEAT_INTERRUPT_SECONDS if number == signal.SIGINT else _REPEAT_SECONDS
        return now - self._first_at.setdefault(number, now) > within


class DeepspeedCommand:
    """The deepspeed command and its inner launcher, if a Ctrl-C reaches them together with this rank.

    The command itself does not survive it: Python's handler prints a traceback after a quarter of a second.

    Args:
        launchers: process ids, as `launcher_pids` gives them.
    """

    def __init__(self, launchers: Sequence[int]) -> None:
        self._ends: list[tuple[int, signal.Signals]] = []
        # torchrun has one process, which holds the ranks' store; over several nodes the second is a remote shell.
        if len(launchers) != 2 or not _is_deepspeed(launchers[1]):
            return
        inner, command = launchers
        with contextlib.suppress(OSError):
            if {os.getpgid(command), os.getpgid(inner)} == {os.getpgrp()}:
                # The command first: it takes the death of the inner one by a signal for success. That one has a handler
                # for SIGTERM, which signals the ranks and waits.
                self._ends = [(os.pidfd_open(command), signal.SIGTERM), (os.pidfd_open(inner), signal.SIGKILL)]

    def end(self) -> None:
        """End both processes; the ranks go on by themselves."""
        for descriptor, number in self._ends:
            with contextlib.suppress(OSError):
                signal.pidfd_send_signal(descriptor, number)


def _is_deepspeed(pid: int) -> bool:
    """Whether a process runs the deepspeed command: `python /path/deepspeed ...`, `python -m deepspeed...`."""
    try:
        words = (Path("/proc") / str(pid) / "cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return False
    return any(Path(word).name in ("deepspeed", "deepspeed.launcher.runner") for word in words[:3])
