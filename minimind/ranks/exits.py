"""The end of a rank: exit statuses and their meaning, last words, and how a rank reads another one's status."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from pathlib import Path
from typing import NoReturn

# A user error, or a rank that is lost or stuck.
FAILED = 1
# Any other error, with a traceback. EX_SOFTWARE of sysexits.h: an internal software error.
CRASHED = 70
# The run was asked to stop and can be resumed. EX_TEMPFAIL of sysexits.h: a scheduler may start the job again.
PREEMPTED = 75


def read_exit_status(pid: int) -> int | None:
    """Exit status of an ended process, minus the signal's number if one killed it; None if its parent has reaped it."""
    try:
        # The command name, in parentheses, may contain spaces. exit_code is field 52 of the line, index 49 after it.
        fields = (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()
        return os.waitstatus_to_exitcode(int(fields[49]))
    except (OSError, ValueError, IndexError):
        return None


def describe_exit(status: int | None) -> str:
    """Text for a message about an ended rank."""
    if status is None:
        return "it was killed or it exited; see the launcher's output"
    if status == CRASHED:
        return "an error ended it; see its traceback"
    return f"killed by {signal.Signals(-status).name}" if status < 0 else f"it exited with status {status}"


def say(message: str) -> None:
    """Print a message on a line of its own. The process that reads the output may have ended."""
    with contextlib.suppress(OSError, ValueError):
        print(f"\n{message}", file=sys.stderr, flush=True)


def leave(status: int, message: str | None = None) -> NoReturn:
    """End this process at once, from any thread, after a last message.

    The interpreter's own shutdown would wait for NCCL, and in it a gloo thread that waits for the interpreter lock
    sometimes aborts the process after a finished run.
    """
    if message is not None:
        say(message)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(status)
