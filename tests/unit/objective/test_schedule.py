"""The learning-rate schedule: MiniMind's cosine, the golden trajectory's values, and warm-up."""

from __future__ import annotations

import json

import pytest

from minimind.objective.schedule import learning_rate_factor


# cos(pi/3) = 1/2, cos(pi/2) = 0, cos(2pi/3) = -1/2, cos(pi) = -1, put into 0.1 + 0.45 * (1 + cos)
@pytest.mark.parametrize(
    ("step", "total", "expected"),
    [(1, 3, 0.775), (2, 3, 0.325), (3, 3, 0.1), (1, 2, 0.55), (2, 2, 0.1), (1, 1, 0.1), (500, 1000, 0.55)],
)
def test_factor_by_hand(step, total, expected):
    assert learning_rate_factor(step, total) == pytest.approx(expected, abs=1e-12)


def test_factor_is_the_golden_trajectory(shared):
    golden = json.loads((shared / "golden" / "trajectory_minimind2_dense.json").read_text())
    steps = golden["steps"]
    assert len(steps) == 10
    ours = [golden["learning_rate"] * learning_rate_factor(step["step"], len(steps)) for step in steps]
    assert ours == pytest.approx([step["learning_rate"] for step in steps], rel=1e-12)


def test_warm_up_scales_the_first_steps_and_no_others():
    plain = [learning_rate_factor(step, 10) for step in range(1, 11)]
    warm = [learning_rate_factor(step, 10, warmup_steps=4) for step in range(1, 11)]
    scale = [0.25, 0.5, 0.75, 1, 1, 1, 1, 1, 1, 1]
    assert warm == pytest.approx([factor * s for factor, s in zip(plain, scale, strict=True)], rel=1e-12)


def test_a_warm_up_longer_than_the_run_keeps_growing_to_its_end():
    # 3 of 6 warm-up steps: half of the cosine's last value, a tenth
    assert learning_rate_factor(3, 3, warmup_steps=6) == pytest.approx(0.05, abs=1e-12)
