"""Run by ranks of test_launching.py: short scenarios without engines. One argument: which."""

from __future__ import annotations

import os
import signal
import sys
import time


def report() -> None:
    """What a rank finds in its process."""
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_SIZE", "MASTER_ADDR", "OMP_NUM_THREADS", "TEST_NAME")
    found = " ".join(f"{name}={os.environ.get(name)}" for name in names)
    line = f"{__name__} {sys.argv} {found} beside={os.path.basename(sys.path[0])}\n"
    sys.stdout.write(line)


def fail() -> None:
    """Rank 1 ends with status 7; rank 0 would wait for a minute, and says that it was asked to end."""
    if os.environ["RANK"] == "1":
        sys.exit(7)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("rank 0 has received SIGTERM"))
    time.sleep(60)


def crash() -> None:
    raise ZeroDivisionError(f"on rank {os.environ['RANK']}")


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def hang() -> None:
    """Longer than the test's limit, in a child process too."""
    child = os.fork()
    if child:
        print(f"child {child} of {os.getpid()}")
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(600)


if __name__ == "__main__":
    {scenario.__name__: scenario for scenario in (report, fail, crash, die, hang)}[sys.argv[-1]]()
