"""Exit statuses of ranks: their meaning, and how a rank reads that of another process."""

from __future__ import annotations

import os
import signal
from pathlib import Path

# A user error or a crash.
FAILED = 1
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
    return f"killed by {signal.Signals(-status).name}" if status < 0 else f"it exited with status {status}"
