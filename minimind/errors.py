"""Errors that a user can correct: one root class, and one class per domain.

A message says what is wrong, where (file, line, key or flag) and what to do about it. The launch scripts print such an
error once, without a traceback, and exit with status 1. Any other exception is a defect of this project and keeps its
traceback.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence


class MiniMindError(Exception):
    """Root of all errors that a user can correct.

    Args:
        message: what is wrong, where, and what to do about it.
        agreed: every rank raises this error, so only rank 0 prints it. Pickling keeps the value.
    """

    def __init__(self, message: str = "", *, agreed: bool = False) -> None:
        super().__init__(message)
        self.agreed = agreed


class ConfigError(MiniMindError):
    """A flag or a DeepSpeed file is wrong, or contradicts another one or the machine."""

    @classmethod
    def from_problems(cls, problems: Sequence[str], *, agreed: bool = False, most: int | None = None) -> ConfigError:
        """One error that lists every problem, so that the user can correct all of them at once.

        Args:
            most: problems that are listed; the others are counted. None: all.
        """
        if len(problems) == 1:
            return cls(problems[0], agreed=agreed)
        listed = "\n".join(f"  - {problem}" for problem in problems[:most])
        if most is not None and len(problems) > most:
            listed += f"\n  - and {len(problems) - most} more like these"
        return cls(f"{len(problems)} problems:\n{listed}", agreed=agreed)


class PackError(ConfigError):
    """A model's layers ask packed attention for something that it does not compute."""


class DataError(MiniMindError):
    """A preference file, a chat template or a tokenizer cannot be used."""


class WeightsError(MiniMindError):
    """A weight file is missing or damaged, or does not fit the model."""


class CheckpointError(MiniMindError):
    """A checkpoint is missing or damaged, or belongs to another run."""


class LaunchError(MiniMindError):
    """The ranks cannot work together: one is missing, differs from the others, has died, or makes no progress."""


class TrainingError(MiniMindError):
    """Training must stop: policy and reference differ before the first step, or a gradient is not finite.

    Args:
        finite: for each micro-batch of this rank in the failed step, whether its log-probs and loss were finite.
    """

    def __init__(self, message: str = "", *, agreed: bool = False, finite: Sequence[bool] = ()) -> None:
        super().__init__(message, agreed=agreed)
        self.finite = finite


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Within it an error of the user ends the process: printed in one line, without a traceback, with status 1."""
    try:
        yield
    except MiniMindError as error:
        sys.exit(f"{type(error).__name__}: {error}")
