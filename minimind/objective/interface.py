"""What a run asks of any objective before it trains, whatever it is computed of.

flags -> JobKind.choose (training/jobs/kinds.py) -> AnyObjective -> setup, first lines, identity of the run
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from minimind.objective.losses.contract import Need


class AnyObjective(Protocol):
    """An objective, as setup sees it; its job knows how to compute it."""

    @property
    def name(self) -> str:
        """Short name, for messages and the identity of a run."""

    @property
    def needs(self) -> frozenset[Need]:
        """Its inputs besides the policy's log-probs."""

    @property
    def statistics(self) -> Mapping[str, float]:
        """Name -> weight of the past, of the running means that it needs."""

    @property
    def depends_on_split(self) -> bool:
        """Whether it depends on which rows share a micro-batch. Those are consecutive rows then."""

    def options(self) -> dict[str, Any]:
        """Options that change its numbers."""

    def describe(self) -> str:
        """For people: its name with its options."""
