"""Options of losses: which a class has, and which values each takes."""

from __future__ import annotations

import dataclasses

import pytest

from minimind.objective.losses import PreferenceLoss, SigmoidLoss, loss_class
from minimind.objective.losses.options import fixed, option, options_of


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shape:
    width: float = option(1.0, "its width", above=0, high=2)
    share: float = option(0.5, "its share", low=0, below=1)
    round: bool = option(True, "1: round")
    note: str = "no option"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Circle(Shape):
    round: bool = fixed(True)


def test_options_are_fields_with_a_meaning():
    found = options_of(Shape)
    assert list(found) == ["width", "share", "round"]
    assert (found["width"].kind, found["width"].default, found["width"].meaning) == (float, 1.0, "its width")
    assert found["round"].kind is bool


def test_a_fixed_option_is_none():
    assert list(options_of(Circle)) == ["width", "share"]
    with pytest.raises(TypeError, match="round"):
        Circle(round=False)


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("width", 2, None),
        ("width", 0.0, "0 is not above 0"),
        ("width", 2.5, "2.5 is above 2"),
        ("share", 0, None),
        ("share", -0.5, "-0.5 is below 0"),
        ("share", 1.0, "1 is not below 1"),
        ("share", "0.5", "'0.5' is not a finite number"),
        ("share", True, "True is not a finite number"),
        ("share", float("nan"), "nan is not a finite number"),
        ("share", None, "None is not a finite number"),
        ("round", 0, None),
        ("round", True, None),
        ("round", 2, "2 is neither 0 nor 1"),
        ("round", "yes", "'yes' is neither 0 nor 1"),
    ],
)
def test_values_that_an_option_takes(name, value, problem):
    assert options_of(Shape)[name].problem_of(value) == problem


def test_options_of_losses():
    assert list(options_of(PreferenceLoss)) == ["average_log_prob"]
    assert list(options_of(SigmoidLoss)) == ["average_log_prob", "beta", "label_smoothing"]
    assert list(options_of(loss_class("simpo"))) == ["beta", "gamma", "label_smoothing"]
    assert list(options_of(loss_class("sft"))) == []
