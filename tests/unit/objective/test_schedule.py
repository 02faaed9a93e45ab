"""Learning-rate schedules: MiniMind's cosine, the golden trajectory's values, and the others by hand."""

from __future__ import annotations

import json
import math

import pytest

from minimind.config import OptimisationConfig, parse_settings
from minimind.errors import ConfigError
from minimind.objective.schedule import Schedule, choose_schedule, learning_rate_factor, make_schedule


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


def factors(flags: str, steps: int) -> list[float]:
    """The factors of a run with these flags at its steps, the first one first."""
    schedule = make_schedule(choose_schedule(parse_settings(flags.split())).config.optimisation, steps)
    return [schedule(step) for step in range(1, steps + 1)]


@pytest.mark.parametrize("warmup", [0, 3, 20])
def test_without_a_flag_the_schedule_is_minimind_s_to_the_last_bit(warmup):
    expected = [learning_rate_factor(step, 10, warmup) for step in range(1, 11)]
    assert factors(f"--warmup_steps {warmup}", 10) == expected
    assert factors(f"--lr_schedule minimind --warmup_steps {warmup}", 10) == expected


# Factors after the warm-up of a run of 8 steps with 2 steps of warm-up: 6 steps, of which the first is the full rate.
REST = {
    "cosine": [(1 + math.cos(math.pi * done / 6)) / 2 for done in range(6)],
    "linear": [1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6],
    "constant": [1, 1, 1, 1, 1, 1],
}


@pytest.mark.parametrize("warmup", ["--warmup_steps 2", "--warmup_ratio 0.25", "--warmup_ratio 0.2"])
@pytest.mark.parametrize("name", REST)
def test_a_warm_up_and_the_rest_by_hand(name, warmup):
    assert factors(f"--lr_schedule {name} {warmup}", 8) == pytest.approx([0.5, 1, *REST[name]], abs=1e-12)


@pytest.mark.parametrize("name", REST)
def test_without_a_warm_up_the_first_step_has_the_full_rate(name):
    assert factors(f"--lr_schedule {name}", 6) == pytest.approx(REST[name], abs=1e-12)


@pytest.mark.parametrize(
    ("flags", "steps", "expected"),
    [
        ("", 20, [*[1] * 18, 1, 0.5]),  # 2 steps of decay, the first at the full rate
        ("--decay_ratio 0.5", 8, [1, 1, 1, 1, 1, 0.75, 0.5, 0.25]),
        ("--decay_ratio 0.5 --warmup_steps 4", 8, [0.25, 0.5, 0.75, 1, 1, 0.75, 0.5, 0.25]),
        ("--decay_ratio 0.75 --warmup_ratio 0.25", 4, [1, 1, 2 / 3, 1 / 3]),
        ("--decay_ratio 0.5 --warmup_ratio 0.5", 3, [0.5, 1, 1]),  # 2 steps and 1 step: they do not overlap
        ("", 9, [1] * 9),  # a tenth of 9 steps is no step
    ],
)
def test_wsd_by_hand(flags, steps, expected):
    assert factors(f"--lr_schedule wsd {flags}", steps) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("name", ["minimind", "cosine", "linear", "constant", "wsd"])
def test_deepspeed_may_ask_for_the_rate_after_the_last_step(name):
    schedule = Schedule(name=name, total_steps=4, warmup_steps=4)
    assert 0 <= schedule(5) <= 1
    assert Schedule(name="linear", total_steps=4)(5) == 0


def test_ratios_are_the_decimal_fractions_that_were_written():
    """0.07 * 100 is above 7 and 0.29 * 100 is below 29 in floating point."""
    schedule = make_schedule(OptimisationConfig(lr_schedule="wsd", warmup_ratio=0.07, decay_ratio=0.29), 100)
    assert (schedule.warmup_steps, schedule.decay_steps) == (7, 29)
    assert schedule.describe() == "wsd over 100 steps, 7 of warm-up, 29 of decay"


def test_a_warm_up_by_ratio_applies_to_minimind_s_schedule_too():
    assert factors("--warmup_ratio 0.4", 10) == [learning_rate_factor(step, 10, 4) for step in range(1, 11)]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--warmup_steps 0 --warmup_ratio 0.1", "--warmup_steps and --warmup_ratio both say how long"),
        ("--warmup_ratio 1.5", "--warmup_ratio 1.5 is above 1"),
        ("--lr_schedule wsd --decay_ratio 2", "--decay_ratio 2 is above 1"),
        ("--decay_ratio 0.2", "--decay_ratio is for --lr_schedule wsd; minimind has no decay of its own"),
        ("--lr_schedule linear --decay_ratio 0.2", "--decay_ratio is for --lr_schedule wsd; linear has"),
        ("--lr_schedule wsd --warmup_ratio 0.95", "--warmup_ratio 0.95 and --decay_ratio 0.1 are more than the whole"),
    ],
)
def test_flags_that_contradict_each_other_are_refused(flags, message):
    with pytest.raises(ConfigError, match=message):
        choose_schedule(parse_settings(flags.split()))


def test_a_ratio_of_zero_is_no_ratio():
    settings = choose_schedule(parse_settings("--warmup_steps 3 --warmup_ratio 0".split()))
    assert make_schedule(settings.config.optimisation, 10).warmup_steps == 3


def test_the_share_of_the_decay_is_shown_where_it_means_something():
    assert choose_schedule(parse_settings(["--lr_schedule", "wsd"])).config.optimisation.decay_ratio == 0.1
    assert choose_schedule(parse_settings([])).config.optimisation.decay_ratio is None


@pytest.mark.parametrize(
    ("name", "steps", "message"),
    [
        ("cosine", 4, "5 steps of warm-up are more than the run's 4 global steps"),
        ("linear", 4, "5 steps of warm-up are more"),
        ("wsd", 10, None),
        ("wsd", 4, "5 steps of warm-up and 2 of decay are more"),
        ("constant", 4, None),
        ("minimind", 4, None),
    ],
)
def test_a_warm_up_leaves_the_steps_that_the_schedule_needs(name, steps, message):
    config = OptimisationConfig(lr_schedule=name, warmup_steps=5, decay_ratio=0.5 if name == "wsd" else None)
    if message is None:
        make_schedule(config, steps)
        return
    with pytest.raises(ConfigError, match=message):
        make_schedule(config, steps)


def test_a_decay_that_begins_in_the_warm_up_is_refused():
    with pytest.raises(ConfigError, match="6 steps of warm-up and 5 of decay are more than the run's 10"):
        make_schedule(OptimisationConfig(lr_schedule="wsd", warmup_steps=6, decay_ratio=0.5), 10)
