"""Problems are collected and raised together; a single one keeps its class."""

from __future__ import annotations

import pytest

from minimind.errors import ConfigError, DataError, WeightsError
from minimind.training.setup.problems import Problems


def fail(error):
    raise error


def test_results_pass_through():
    problems = Problems()
    assert problems.attempt(lambda: 3) == 3
    problems.raise_if_any()


def test_a_single_problem_keeps_its_class():
    problems = Problems()
    assert problems.attempt(lambda: fail(WeightsError("damaged"))) is None
    with pytest.raises(WeightsError, match=r"^damaged$"):
        problems.raise_if_any()


def test_several_problems_are_one_error():
    problems = Problems()
    problems.attempt(lambda: fail(WeightsError("damaged")))
    problems.extend([DataError("missing")])
    with pytest.raises(ConfigError, match="2 problems:\n  - damaged\n  - missing"):
        problems.raise_if_any()


def test_other_exceptions_are_not_collected():
    with pytest.raises(ZeroDivisionError):
        Problems().attempt(lambda: 1 // 0)
