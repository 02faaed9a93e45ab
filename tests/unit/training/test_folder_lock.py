"""The lock of a run's folder: one run at a time."""

from __future__ import annotations

import os
import socket

import pytest

from minimind.errors import ConfigError
from minimind.training.folder_lock import FolderLock


def test_a_second_run_is_refused_by_the_name_of_the_first(tmp_path):
    first, second = FolderLock(tmp_path / "out"), FolderLock(tmp_path / "out")
    first.acquire(create=True)
    expected = rf"out: another run writes into this folder \(process {os.getpid()} on {socket.gethostname()}\); wait"
    with pytest.raises(ConfigError, match=expected):
        second.acquire(create=True)
    first.acquire(create=True)  # no effect: it holds the lock
    first.release()
    second.acquire(create=True)


def test_a_missing_folder_is_made_only_on_request(tmp_path):
    lock = FolderLock(tmp_path / "deep" / "out")
    lock.acquire(create=False)
    assert not (tmp_path / "deep").exists()
    lock.acquire(create=True)
    assert (tmp_path / "deep" / "out" / ".lock").is_file()


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"--save_dir .*file/out: cannot be written"):
        FolderLock(tmp_path / "file" / "out").acquire(create=True)


def test_a_lock_without_a_name_is_described(tmp_path):
    first = FolderLock(tmp_path)
    first.acquire(create=True)
    (tmp_path / ".lock").write_text("")
    with pytest.raises(ConfigError, match="of an unknown process"):
        FolderLock(tmp_path).acquire(create=True)
