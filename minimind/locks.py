"""Locks between processes that share files: held by the operating system until the process ends, in whatever way.

    path of a lock file -> try_lock -> descriptor, or None while another process holds it
                        -> held     -> waits, then holds it for a block of code

The lock is flock's. On a file system without it every process gets the lock: callers must be safe without.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

# What a file system without flock answers.
NO_FLOCK = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
_POLL_SECONDS = 0.5


def try_lock(path: Path) -> int | None:
    """Take a lock without waiting, and write into its file who holds it.

    Returns:
        A descriptor, which holds the lock until it is closed; None if another process holds the lock.

    Raises:
        OSError: the file cannot be made or locked.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except OSError as error:
        if error.errno not in NO_FLOCK:
            os.close(descriptor)
            raise
    holder = json.dumps({"host": socket.gethostname(), "pid": os.getpid()})
    # On a full disk the lock holds without a name.
    with contextlib.suppress(OSError):
        os.truncate(descriptor, 0)
        os.pwrite(descriptor, holder.encode(), 0)
    return descriptor


def holder(path: Path) -> str:
    """Who holds a lock, for messages."""
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        return f"process {held['pid']} on {held['host']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "of an unknown process"  # it has not written its name yet


@contextlib.contextmanager
def held(path: Path, on_wait: Callable[[], object]) -> Iterator[None]:
    """Hold a lock, and delete its file in the end.

    Args:
        on_wait: called about twice a second while another process holds the lock.

    Raises:
        OSError: see `try_lock`.
    """
    while (descriptor := _lock_present(path)) is None:
        on_wait()
        time.sleep(_POLL_SECONDS)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            path.unlink()
        os.close(descriptor)


def _lock_present(path: Path) -> int | None:
    """As `try_lock`, for files that their holders delete."""
    while (descriptor := try_lock(path)) is not None:
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                break
        # Deleted between opening and locking: another process may hold the file that has the name now.
        os.close(descriptor)
    return descriptor
