"""Buffers in /dev/shm: reserved or refused as a whole, and removed when nobody has them open any more."""

from __future__ import annotations

import importlib
import os
import subprocess
import time
from types import SimpleNamespace

import pytest

from minimind.engine.patches import buffers
from minimind.engine.patches.buffers import BUFFER_BYTES, Reservation, remove_dead, skip_buffers
from minimind.engine.patches.registry import PatchSelection


@pytest.fixture
def memory(one_rank, tmp_path, monkeypatch):
    """A folder in place of /dev/shm, and the file of rank 0 there."""
    monkeypatch.setattr(buffers, "SHM", tmp_path)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "29777")
    return tmp_path / f"deepspeed_allreduce_buffer_{os.getuid()}_127.0.0.1_29777_0"


def test_a_reservation_has_all_blocks_until_its_name_goes(memory):
    memory.write_bytes(b"left by a run at the same port")
    reservation = Reservation(0, 1)
    assert reservation.problem is None
    assert memory.stat().st_size == BUFFER_BYTES
    assert memory.stat().st_blocks * 512 >= BUFFER_BYTES
    # Another run's start leaves it alone.
    remove_dead(memory.parent)
    assert memory.exists()
    reservation.release()
    assert not memory.exists()


def test_what_does_not_fit_is_refused_with_numbers_and_remedy(memory, monkeypatch):
    def fails(descriptor, offset, size):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", fails)
    disk = SimpleNamespace(total=64 * 2**20, free=10 * 2**20)
    monkeypatch.setattr(buffers.shutil, "disk_usage", lambda path: disk)
    foreign = memory.with_name("deepspeed_allreduce_buffer_4711_127.0.0.1_29500_0")
    foreign.write_bytes(b"x" * 2**20)
    problem = Reservation(0, 3).problem
    assert problem.startswith("[Errno 28] No space left on device; 3 ranks take 198 MiB there, 10 of 64 MiB are free")
    assert "and 1 MiB are in deepspeed_allreduce_buffer_*, which you may delete if no other run uses them" in problem
    assert problem.endswith("--shm-size=1g")
    assert not memory.exists()


@pytest.mark.parametrize(
    ("is_open", "old", "first_namespace", "removed"),
    [
        (False, False, True, True),
        (False, False, False, False),  # another container may have it open
        (False, True, False, True),
        (True, True, True, False),
    ],
)
def test_only_buffers_of_dead_runs_are_removed(is_open, old, first_namespace, removed, memory, monkeypatch):
    monkeypatch.setattr(buffers, "_in_first_namespace", lambda: first_namespace)
    foreign, other = memory.with_name("deepspeed_allreduce_buffer_4711_a_1_0"), memory.with_name("sem.mp-1")
    for path in (memory, foreign, other):
        path.touch()
        os.utime(path, (time.time() - 130 * old,) * 2)
    holder = subprocess.Popen(["sleep", "600"], stdin=memory.open() if is_open else None)
    try:
        remove_dead(memory.parent)
    finally:
        holder.kill()
        holder.wait()
    assert memory.exists() != removed
    assert foreign.exists()
    assert other.exists()


def test_deepspeed_makes_no_buffers_once_it_is_kept_from_them(monkeypatch):
    backend = importlib.import_module("deepspeed.comm.torch")
    monkeypatch.setattr(backend, "build_shm_op", backend.build_shm_op)  # put back afterwards
    assert skip_buffers(PatchSelection(report=pytest.fail))
    assert backend.build_shm_op() is None
    said = []
    assert not skip_buffers(PatchSelection(disabled=frozenset({"skip_buffers"}), report=said.append))
    assert "CPU ranks need 66 MiB of /dev/shm each" in said[0]
