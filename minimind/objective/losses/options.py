"""Options of losses: fields of data classes with a meaning and a range, and values for them from flags and JSON.

option(default, meaning, range) -> field of a loss -> options_of -> Option -> problem_of(value)
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

# Key of an option's _Metadata in the metadata of its dataclass field.
_KEY = "option"


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Metadata:
    meaning: str
    low: float | None
    above: float | None
    high: float | None
    below: float | None
    follows_model: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class Option:
    """One option of a loss.

    Attributes:
        kind: bool or float.
        low, high: bounds that the value may have.
        above, below: bounds that it may not have.
        follows_model: its default is that of the model that is trained (`ModelDefaults`), if one is known.
    """

    name: str
    kind: type
    default: Any
    meaning: str
    low: float | None = None
    above: float | None = None
    high: float | None = None
    below: float | None = None
    follows_model: bool = False

    def problem_of(self, value: Any) -> str | None:
        """Why the value is not one of this option; None if it is."""
        if self.kind is bool:
            return None if value in (0, 1) else f"{value!r} is neither 0 nor 1"
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            return f"{value!r} is not a finite number"
        outside = (
            (self.low is not None and value < self.low, f"is below {self.low}"),
            (self.above is not None and value <= self.above, f"is not above {self.above}"),
            (self.high is not None and value > self.high, f"is above {self.high}"),
            (self.below is not None and value >= self.below, f"is not below {self.below}"),
        )
        return next((f"{value:g} {text}" for is_outside, text in outside if is_outside), None)


def option(
    default: Any,
    meaning: str,
    *,
    low: float | None = None,
    above: float | None = None,
    high: float | None = None,
    below: float | None = None,
    follows_model: bool = False,
) -> Any:
    """A dataclass field that is an option of a loss; see `Option` for the arguments."""
    metadata = _Metadata(meaning=meaning, low=low, above=above, high=high, below=below, follows_model=follows_model)
    return dataclasses.field(default=default, metadata={_KEY: metadata})


def fixed(value: Any) -> Any:
    """A dataclass field that replaces an inherited option by a value that nobody can change."""
    return dataclasses.field(default=value, init=False)


def options_of(loss: type[Any]) -> dict[str, Option]:
    """Name -> option, of a loss's class, in the order of declaration."""
    return {
        # The default says which kind it is: annotations of a class that a notebook defines may not be resolvable.
        field.name: Option(
            name=field.name,
            kind=bool if isinstance(field.default, bool) else float,
            default=field.default,
            **vars(field.metadata[_KEY]),
        )
        for field in dataclasses.fields(loss)
        if _KEY in field.metadata
    }
