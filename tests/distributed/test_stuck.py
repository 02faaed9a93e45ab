"""A rank that hangs is named with its phase and the run ends; a rank that is slow but makes progress is waited for."""

from __future__ import annotations

import pytest

from tests.distributed.launching import launch

pytestmark = pytest.mark.distributed

STUCK = "no rank has made progress for 6 s (--timeout); rank {rank} has not arrived: rank {rank} (process "


def test_hanging_rank_is_named_with_its_phase_and_a_slow_rank_is_not():
    done = launch("tests/distributed/workers/hanging.py", "slow", ranks=2)
    assert "eight seconds of tokenising are no hang" in done.output
    assert done.status != 0
    assert done.output.count("LaunchError") == 1
    assert STUCK.format(rank=1) in done.output
    assert "is in policy forward of step 7" in done.output
    assert "waiting in backward of step 7" in done.output


def test_rank_that_spins_in_a_shared_memory_collective_is_ended():
    done = launch("tests/distributed/workers/hanging.py", "summing", ranks=2)
    assert done.status != 0
    assert done.output.count("LaunchError") == 1
    assert "no rank has made progress for 6 s (--timeout)" in done.output
    assert "in backward of step 7" in done.output


def test_suspended_rank_0_ends_the_run():
    """All its threads are stopped, as on a machine that swaps or waits for a file system."""
    done = launch("tests/distributed/workers/hanging.py", "stopped", ranks=2)
    assert done.status != 0
    assert done.output.count("LaunchError") == 1
    assert STUCK.format(rank=0) in done.output
    assert "waiting in saving of step 7" in done.output
