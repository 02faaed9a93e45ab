"""Keeps two runs out of one folder: their metrics would mix, and each would delete the other's checkpoints.

    --save_dir -> FolderLock.acquire -> lock file held by rank 0 until its process ends, in whatever way

The operating system holds the lock (flock), so that of a killed run is gone with its process.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
from pathlib import Path

from minimind.errors import ConfigError

_NAME = ".lock"
# What a file system without locks answers.
_UNSUPPORTED = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


class FolderLock:
    """The lock of one run's folder. It is released when the process ends or `release` is called.

    Args:
        folder: --save_dir.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._descriptor: int | None = None

    def acquire(self, *, create: bool) -> None:
        """Take the lock; no effect if this object holds it.

        Args:
            create: make the folder if it is missing; otherwise a missing folder is left alone and not locked.

        Raises:
            ConfigError: another run holds the lock, or the folder cannot be written.
        """
        if self._descriptor is not None or (not create and not self._folder.is_dir()):
            return
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self._folder / _NAME, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise ConfigError(f"--save_dir {self._folder}: cannot be written ({error})") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(descriptor)
            raise ConfigError(
                f"--save_dir {self._folder}: another run writes into this folder ({self._holder()}); wait until it "
                "ends, or give another --save_dir"
            ) from error
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                os.close(descriptor)
                raise ConfigError(f"--save_dir {self._folder}: cannot be locked ({error})") from error
        self._descriptor = descriptor
        self._write_holder(descriptor)

    def release(self) -> None:
        """Give the lock back. The file stays: deleting it could take it from a run that has just opened it."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _holder(self) -> str:
        """The run that holds the lock, for the message."""
        try:
            held = json.loads((self._folder / _NAME).read_text(encoding="utf-8"))
            return f"process {held['pid']} on {held['host']}"
        except (OSError, ValueError, KeyError, TypeError):
            return "of an unknown process"  # it has not written its name yet

    def _write_holder(self, descriptor: int) -> None:
        holder = json.dumps({"host": socket.gethostname(), "pid": os.getpid()})
        try:
            os.truncate(descriptor, 0)
            os.pwrite(descriptor, holder.encode(), 0)
        except OSError:
            pass  # a full disk: the lock holds without a name
