"""Collects a run's configuration problems, so that a user can fix all of them at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

from minimind.errors import ConfigError, MiniMindError

Result = TypeVar("Result")


class Problems:
    """User errors found so far."""

    def __init__(self) -> None:
        self._found: list[MiniMindError] = []

    def attempt(self, action: Callable[[], Result]) -> Result | None:
        """The action's result, or None if it raises a user error, which is kept."""
        try:
            return action()
        except MiniMindError as error:
            self._found.append(error)
            return None

    def extend(self, errors: Iterable[MiniMindError]) -> None:
        """Keep these errors."""
        self._found += errors

    def raise_if_any(self, most: int | None = None) -> None:
        """Raise all errors as one; a single error keeps its class.

        Args:
            most: errors that are listed; the others are counted. None: all.

        Raises:
            MiniMindError: there are problems.
        """
        if len(self._found) == 1:
            raise self._found[0]
        if self._found:
            raise ConfigError.from_problems([str(error) for error in self._found], most=most)
