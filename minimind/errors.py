"""What a user can be told is wrong: one root error, one class per domain.

Every message says what is wrong, where (file, line, key or flag) and what to do about it. The launch scripts print
such an error once, without a traceback, and end with status 1; anything else is a defect of ours and keeps its
traceback.
"""

from __future__ import annotations

from collections.abc import Sequence


class MiniMindError(Exception):
    """Root of every error that a user can mend.

    Args:
        message: what is wrong, where, and what to do about it.
        agreed: every rank raises this error, so that only rank 0 needs to print it. It survives pickling.
    """

    def __init__(self, message: str = "", *, agreed: bool = False) -> None:
        super().__init__(message)
        self.agreed = agreed


class ConfigError(MiniMindError):
    """Flags and DeepSpeed files that are wrong or disagree with each other or with the machine."""

    @classmethod
    def from_problems(cls, problems: Sequence[str], *, agreed: bool = False) -> ConfigError:
        """One error that lists every problem, so that the user can correct all of them at once."""
        if len(problems) == 1:
            return cls(problems[0], agreed=agreed)
        listed = "\n".join(f"  - {problem}" for problem in problems)
        return cls(f"{len(problems)} problems:\n{listed}", agreed=agreed)


class DataError(MiniMindError):
    """Preference files, chat templates and tokenizers that cannot be used."""


class WeightsError(MiniMindError):
    """Weight files that are missing, damaged or do not fit the model."""


class CheckpointError(MiniMindError):
    """Checkpoints that are missing, torn or belong to another run."""


class LaunchError(MiniMindError):
    """Ranks that do not come together: not all there, not alike, gone, or stuck."""


class TrainingError(MiniMindError):
    """A run that must not go on: reference and policy differ at the start, or a loss is not finite.

    Attributes:
        finite: of this rank's micro-batches of a step that failed, whether log-probs and losses were finite.
    """

    finite: Sequence[bool] = ()
