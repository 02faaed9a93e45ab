"""Moves the reference after global steps, for --reference_update.

Step -> MovingReference.after_step, before the listeners that evaluate and save
"""

from __future__ import annotations

from minimind.engine.moving_reference import MovingReference
from minimind.engine.policy import Policy
from minimind.ranks.watch import Watch
from minimind.training.events import Listener, Step


class ReferenceUpdates(Listener):
    """Moves the reference when it is due. Its state is a file of its own in each checkpoint."""

    name = "reference_updates"

    def __init__(self, *, moving: MovingReference, policy: Policy, watch: Watch) -> None:
        self._moving, self._policy, self._watch = moving, policy, watch

    def on_step(self, event: Step) -> None:
        self._watch.enter("moving the reference", event.step)
        self._moving.after_step(event.step, self._policy)
