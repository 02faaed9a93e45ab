"""Locks between processes: one holder, gone with its process, and no error where a file system has none."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import socket

import pytest

from minimind import locks
from minimind.locks import held, holder, try_lock
from tests.forked import forked


@pytest.fixture
def lock(tmp_path):
    return tmp_path / "a.lock"


def test_one_process_holds_a_lock_and_its_file_says_which(lock):
    descriptor = try_lock(lock)
    assert try_lock(lock) is None
    assert holder(lock) == f"process {os.getpid()} on {socket.gethostname()}"
    os.close(descriptor)
    assert try_lock(lock) is not None


def test_the_lock_of_a_killed_process_is_gone(lock):
    def die_with_it():
        try_lock(lock)
        os.kill(os.getpid(), signal.SIGKILL)

    with forked(die_with_it) as process:
        process.join(120)
        assert process.exitcode == -signal.SIGKILL
    assert lock.read_text()
    assert try_lock(lock) is not None


def test_a_file_system_without_locks_is_no_error(lock, monkeypatch):
    def refuse(descriptor, operation):
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    assert try_lock(lock) is not None
    assert try_lock(lock) is not None


def test_any_other_error_is_raised(lock, monkeypatch):
    def refuse(descriptor, operation):
        raise OSError(errno.EIO, "input/output error")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(OSError, match="input/output error"):
        try_lock(lock)


def test_waiting_for_a_lock(lock, monkeypatch):
    """It is held once the other process has given it back, and its file is deleted in the end."""
    monkeypatch.setattr(locks.time, "sleep", lambda seconds: None)
    descriptor, waits = try_lock(lock), []

    def wait():
        waits.append(1)
        if len(waits) == 3:
            os.close(descriptor)

    with held(lock, wait):
        assert try_lock(lock) is None
    assert len(waits) == 3
    assert not lock.exists()


def test_a_deleted_file_is_no_lock(lock, monkeypatch):
    """Between opening and locking, the holder deletes the file and a third process makes and locks another one."""
    real, third = fcntl.flock, []

    def flock(descriptor, operation):
        if not third:
            lock.unlink()
            third.append(os.open(lock, os.O_RDWR | os.O_CREAT))
            real(third[0], fcntl.LOCK_EX)
        real(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    monkeypatch.setattr(locks.time, "sleep", lambda seconds: None)
    waits = []

    def wait():
        waits.append(1)
        os.close(third[0])

    with held(lock, wait):
        pass
    assert waits == [1]
