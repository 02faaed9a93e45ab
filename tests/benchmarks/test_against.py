"""Steps of two commits in turn, and their ratio."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.benchmarks.against import ratio_of, take_turns
from tests.conftest import REPO


def test_the_ratio_is_that_of_medians_with_its_interval():
    base = [1.0, 2.0, 3.0, 100.0, 2.0]
    found = ratio_of(base, [1.1 * seconds for seconds in base])
    assert found.medians == pytest.approx((2.0, 2.2))
    assert found.value == pytest.approx(1.1)
    # Steps are drawn in pairs, so the outlier, which both have, makes no interval.
    assert found.interval == pytest.approx((1.1, 1.1))
    low, high = ratio_of(base, [1.0, 2.0, 1.0, 1.0, 9.0]).interval
    assert low < 1 < high


def test_both_take_their_steps_in_turn():
    """The first two steps of each are the warm-up."""
    taken = []

    def step(name):
        return lambda: (taken.append(name), float(len(taken)))[1]

    base, own = take_turns(step("base"), step("own"), 3, 2)
    assert taken == ["base", "own", "own", "base", "base", "own", "own", "base", "base", "own"]
    assert base == [5.0, 8.0, 9.0]
    assert own == [6.0, 7.0, 10.0]


@pytest.mark.long
@pytest.mark.distributed
@pytest.mark.timeout(400)
def test_this_commit_is_compared_with_itself():
    arguments = ("-m", "tests.benchmarks.against", "HEAD", "--steps", "3", "--warmup", "1", "--most", "100")
    done = subprocess.run([sys.executable, *arguments], cwd=REPO, capture_output=True, text=True, timeout=350)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "medians of 3 steps in turn" in done.stdout
    assert "ratio " in done.stdout
