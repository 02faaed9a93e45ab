"""The figures of quads of steps: a known cost is found, whatever the batches and what disturbs some steps."""

from __future__ import annotations

import numpy as np
import pytest

from tests.benchmarks.listeners_cost import BATCHES, faster_halves, interval, median_difference, over_levels


@pytest.mark.parametrize("figure", [median_difference, faster_halves])
@pytest.mark.parametrize("cost", [0.0, 0.02])
def test_a_cost_is_within_its_interval(figure, cost):
    random = np.random.default_rng(1)
    levels = np.tile([1.0, 3.0, 2.0, 5.0], 50)
    assert len(levels) % BATCHES == 0
    noise = 1 + 0.01 * random.exponential(size=(len(levels), 2))
    quads = levels[:, None] * noise * np.array([1 + cost, 1])
    quads[::9, 0] *= 1.5  # other programs
    value, low, high = interval(over_levels(quads), figure)
    assert low <= value <= high
    assert low < cost + 0.003
    assert abs(value - cost) < 0.005
    assert high - low < 0.01
