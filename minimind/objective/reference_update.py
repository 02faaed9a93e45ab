"""How a reference follows the policy: the value of --reference_update (TR-DPO, arXiv 2404.09656).

soft:0.6@64    every 64 global steps: reference = 0.6 policy + 0.4 reference
ema:0.99@64    the same rule by the weight that the reference keeps: 0.01 policy + 0.99 reference
hard@512       every 512 global steps: reference = policy
"""

from __future__ import annotations

import dataclasses
import re

from minimind.errors import ConfigError

_FLAG = "--reference_update"
_FORMS = "soft:SHARE@STEPS (e.g. soft:0.6@64), ema:KEPT@STEPS (e.g. ema:0.99@1) and hard@STEPS (e.g. hard@512)"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReferenceUpdate:
    """An update of the reference's weights.

    Attributes:
        share: of the policy in the new reference, above 0; 1: the reference becomes the policy.
        every: global steps between two updates.
    """

    share: float
    every: int

    @property
    def hard(self) -> bool:
        """The old reference does not count."""
        return self.share == 1

    def due(self, step: int) -> bool:
        """Whether the reference moves after this global step."""
        return step % self.every == 0

    def __str__(self) -> str:
        steps = "every global step" if self.every == 1 else f"every {self.every} global steps"
        return f"{steps} {self.share:g} of the policy" + ("" if self.hard else f" and {1 - self.share:g} of itself")


def parse_reference_update(text: str) -> ReferenceUpdate:
    """The update that a value of --reference_update means.

    Raises:
        ConfigError: it is in none of the forms, or a number is out of range.
    """
    found = re.fullmatch(r"(?:(soft|ema):([^@]+)|(hard))@(\d+)", text.strip())
    if found is None:
        raise ConfigError(f"{_FLAG} {text}: the forms are {_FORMS}")
    kind, number, _, steps = found.groups()
    if int(steps) < 1:
        raise ConfigError(f"{_FLAG} {text}: the reference moves every {steps} steps; give at least 1")
    if kind is None:
        return ReferenceUpdate(share=1.0, every=int(steps))
    try:
        weight = float(number)
    except ValueError as error:
        raise ConfigError(f"{_FLAG} {text}: {number!r} is no number; the forms are {_FORMS}") from error
    # At 0 of the policy nothing moves, and all of it is what `hard` says.
    if not 0 < weight < 1:
        raise ConfigError(f"{_FLAG} {text}: {number} is not between 0 and 1; hard@{steps} takes the whole policy")
    return ReferenceUpdate(share=weight if kind == "soft" else 1 - weight, every=int(steps))
