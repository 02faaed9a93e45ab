"""User errors: one error for several problems, and the `agreed` mark."""

from __future__ import annotations

import pickle

import pytest

from minimind.errors import CheckpointError, ConfigError, MiniMindError, TrainingError, one_line_errors


def test_one_problem_is_the_message():
    assert str(ConfigError.from_problems(["no file"])) == "no file"


def test_several_problems_are_listed():
    error = ConfigError.from_problems(["no file", "no rank"], agreed=True)
    assert str(error) == "2 problems:\n  - no file\n  - no rank"
    assert error.agreed


@pytest.mark.parametrize("agreed", [False, True])
@pytest.mark.parametrize("kind", [MiniMindError, CheckpointError, ConfigError, TrainingError])
def test_agreed_survives_pickling(kind, agreed):
    """Ranks gather each other's errors as pickled objects."""
    copy = pickle.loads(pickle.dumps(kind("why", agreed=agreed)))
    assert type(copy) is kind
    assert str(copy) == "why"
    assert copy.agreed is agreed


def test_agreed_is_false_by_default():
    assert MiniMindError("why").agreed is False
    assert ConfigError.from_problems(["why"]).agreed is False


def test_an_error_of_the_user_ends_the_process_in_one_line():
    with pytest.raises(SystemExit) as ended, one_line_errors():
        raise ConfigError("--beta 0 is too low")
    assert ended.value.code == "ConfigError: --beta 0 is too low"
    with pytest.raises(ValueError, match="a defect"), one_line_errors():
        raise ValueError("a defect")
