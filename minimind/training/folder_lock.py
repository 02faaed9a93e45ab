"""Keeps two runs out of one folder: their metrics would mix, and each would delete the other's checkpoints.

--save_dir -> FolderLock.acquire -> lock file held by rank 0 until its process ends, in whatever way
"""

from __future__ import annotations

import os
from pathlib import Path

from minimind.errors import ConfigError
from minimind.locks import holder, try_lock

_NAME = ".lock"


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
            self._descriptor = try_lock(self._folder / _NAME)
        except OSError as error:
            raise ConfigError(f"--save_dir {self._folder}: cannot be written or locked ({error})") from error
        if self._descriptor is None:
            raise ConfigError(
                f"--save_dir {self._folder}: another run writes into this folder ({holder(self._folder / _NAME)}); "
                "wait until it ends, or give another --save_dir"
            )

    def release(self) -> None:
        """Give the lock back. The file stays: deleting it could take it from a run that has just opened it."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
