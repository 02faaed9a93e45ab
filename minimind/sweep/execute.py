"""Runs one training by the deepspeed launcher, and ends it when the sweep is asked to stop.

    RunPlan -> deepspeed SCRIPT OF THE JOB ... -> console.log in the run's folder, shown as it grows -> exit status

The launcher is in a session of its own, so that a Ctrl-C reaches the sweep alone. The sweep then ends the launcher; the
ranks notice it, save a checkpoint and exit, and the sweep waits for them by the lock of their folder.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import BinaryIO

from minimind.config.jobs import JOBS
from minimind.errors import ConfigError, LaunchError
from minimind.ranks.exits import PREEMPTED
from minimind.ranks.signals import STOP_SIGNALS
from minimind.sweep.plan import RunPlan
from minimind.training.folder_lock import FolderLock

LOG = "console.log"
_REPO = Path(__file__).resolve().parents[2]
_POLL_SECONDS = 0.2
# A second signal within this time is the first one, sent to a process group and forwarded by a parent as well.
_REPEAT_SECONDS = 1.0
# Exit statuses of a launch that something else than the sweep has stopped; its ranks have saved a checkpoint.
_STOPPED = (PREEMPTED, *(128 + number for number in STOP_SIGNALS), *(-number for number in STOP_SIGNALS))


class Stop:
    """Whether the sweep is asked to stop.

    Attributes:
        number: the signal; None: go on.
        again: it has come a second time.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self.again = False
        self._first = 0.0

    def __call__(self, number: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.number is None:
            self.number, self._first = number, now
        elif now - self._first > _REPEAT_SECONDS:
            self.again = True

    def ended(self) -> None:
        """Something else has stopped a run: the sweep is not to start the next one."""
        if self.number is None:
            self.number = signal.SIGTERM

    @contextlib.contextmanager
    def listening(self) -> Iterator[Stop]:
        """Within the block signals that ask to stop are noted and end nothing."""
        before = {number: signal.signal(number, self) for number in STOP_SIGNALS}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def launch(plan: RunPlan, launcher: Sequence[str], stop: Stop) -> int:
    """Train until the run ends or is stopped; what it prints is shown and kept in `console.log`.

    Returns:
        Exit status of the launcher; PREEMPTED if the run was stopped and its ranks have ended.

    Raises:
        LaunchError: the launcher cannot be started.
        ConfigError: the log cannot be written.
    """
    path = plan.folder / LOG
    try:
        with path.open("ab") as log, path.open("rb") as shown:
            shown.seek(0, os.SEEK_END)
            process = _start(plan, launcher, log)
            status = _follow(process, plan, shown, stop)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written ({error})") from error
    return PREEMPTED if stop.number is not None or status in _STOPPED else status


def deepspeed_command() -> str:
    """Path of the deepspeed launcher: of this Python, else of PATH.

    Raises:
        LaunchError: there is none.
    """
    beside = Path(sys.executable).with_name("deepspeed")
    found = str(beside) if beside.is_file() else shutil.which("deepspeed")
    if found is None:
        raise LaunchError("the deepspeed launcher is not installed beside this Python, nor on PATH")
    return found


def _start(plan: RunPlan, launcher: Sequence[str], log: BinaryIO) -> subprocess.Popen[bytes]:
    command = [deepspeed_command(), *launcher, str(_REPO / JOBS[plan.job].script), *plan.argv]
    try:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
    except OSError as error:
        raise LaunchError(f"{command[0]} cannot be started ({error})") from error


def _follow(process: subprocess.Popen[bytes], plan: RunPlan, shown: BinaryIO, stop: Stop) -> int:
    """Show the log until the launcher and its ranks have ended."""
    told = False
    while process.poll() is None or not _ranks_ended(plan):
        _show(shown)
        if stop.number is not None and not told:
            told = True
            print("\nstopping: the run saves a checkpoint; once more ends it at once", flush=True)
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
        if stop.again:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            break
        time.sleep(_POLL_SECONDS)
    _show(shown)
    return process.returncode


def _ranks_ended(plan: RunPlan) -> bool:
    """Whether no process holds the lock of the run's folder."""
    lock = FolderLock(plan.folder)
    try:
        lock.acquire(create=False)
    except ConfigError:
        return False
    lock.release()
    return True


def _show(log: BinaryIO) -> None:
    if text := log.read():
        sys.stdout.write(text.decode("utf-8", errors="replace"))
        sys.stdout.flush()
