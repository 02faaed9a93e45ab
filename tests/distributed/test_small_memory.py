"""/dev/shm too small, or full of what dead runs left: real launches that see a small one of their own."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest

from minimind.engine.patches.buffers import BUFFER_BYTES
from tests.distributed.running import Running

# Long: tests/unit/engine/patches/test_buffers.py has the reservation and the dead runs without a launch.
pytestmark = [pytest.mark.distributed, pytest.mark.long, pytest.mark.timeout(600)]

# A mount namespace of its own, in which "$0" says what /dev/shm is. What is left there is printed at the end.
IN_SMALL = 'mount -t tmpfs -o "size=$0" none /dev/shm || exit 99; '
LEFT = '"$@"; status=$?; echo "left: $(ls /dev/shm)."; exit $status'


@pytest.fixture(scope="module")
def small():
    """The words before a command that give it a /dev/shm of a size, after shell commands that fill it."""
    if shutil.which("unshare") is None or os.geteuid() != 0:
        pytest.skip("another /dev/shm needs root and the command unshare")
    words = ("unshare", "--mount", "sh", "-c")
    done = subprocess.run([*words, IN_SMALL, "1m"], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    return lambda size, fill="": (*words, f"{IN_SMALL}{fill}{LEFT}", size)


def output(prefix, folder):
    flags = ("--deepspeed", "ds_configs/zero2.json", "--max_steps", 1, "--save_dir", folder)
    with Running(*flags, prefix=prefix) as run:
        return run.ended(300).succeeded().output


@pytest.mark.parametrize("size", [pytest.param("64m", id="no buffer fits"), pytest.param("100m", id="one of two fits")])
def test_ranks_go_on_without_shared_memory_that_does_not_fit(size, small, tmp_path):
    """Docker's default is 64 MiB. DeepSpeed would die of SIGSEGV."""
    said = output(small(size), tmp_path)
    assert said.count("the ranks communicate through sockets, which is slower: ") == 1
    assert "2 ranks take 132 MiB there" in said
    assert "--shm-size=1g" in said
    assert "left: ." in said


def test_what_dead_runs_left_makes_room_and_other_files_stay(small, tmp_path):
    """Room for two buffers, one of them taken by a run that was killed."""
    dead, other = (f"deepspeed_allreduce_buffer_{user}_127.0.0.1_29500_0" for user in (os.getuid(), 4711))
    fill = f"head -c {BUFFER_BYTES} /dev/zero > /dev/shm/{dead}; touch -d '1 hour ago' /dev/shm/{dead}; "
    said = output(small("140m", f"{fill}touch /dev/shm/{other}; "), tmp_path)
    assert "through sockets" not in said
    assert f"left: {other}." in said
