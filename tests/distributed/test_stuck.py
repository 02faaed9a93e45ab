"""A rank that does not arrive is named with its phase, and the job ends; one that is slow but gets on is waited for."""

from __future__ import annotations

import pytest

from tests.distributed.launching import launch

pytestmark = pytest.mark.distributed

STUCK = "no rank has made progress for 6 s (--timeout); rank {rank} has not arrived: rank {rank} (process "


def test_hanging_rank_is_named_with_its_phase_and_a_slow_one_is_waited_for():
    done = launch("tests/distributed/workers/hanging.py", "slow", ranks=2, launcher=True)
    assert "eight seconds of tokenising are no hang" in done.output
    assert done.status != 0
    assert done.output.count("LaunchError") == 1
    assert STUCK.format(rank=1) in done.output
    assert "is in policy forward of step 7" in done.output
    assert "waiting in backward of step 7" in done.output


def test_a_rank_that_spins_in_shared_memory_is_ended():
    done = launch("tests/distributed/workers/hanging.py", "summing", ranks=2, launcher=True)
    assert done.status != 0
    assert done.output.count("LaunchError") == 1
    assert "no rank has made progress for 6 s (--timeout)" in done.output
    assert "in backward of step 7" in done.output


def test_rank_0_that_stands_still_ends_the_run():
    """As a machine that swaps or a file system that hangs would stop it: it answers nobody."""
    done = launch("tests/distributed/workers/hanging.py", "stopped", ranks=2, launcher=True)
    assert done.status != 0
    assert done.output.count("LaunchError") == 1
    assert STUCK.format(rank=0) in done.output
    assert "waiting in saving of step 7" in done.output
