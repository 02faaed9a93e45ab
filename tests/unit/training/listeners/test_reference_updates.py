"""The reference moves after a step, with the policy of that step."""

from __future__ import annotations

from types import SimpleNamespace

from minimind.ranks.watch import Watch
from minimind.training.events import Step
from minimind.training.listeners.reference_updates import ReferenceUpdates


def test_every_step_is_passed_on():
    """Also a step at which a signal asks for a stop: what is saved then is what the next step would have."""
    seen = []
    moving = SimpleNamespace(after_step=lambda step, policy: seen.append((step, policy)))
    listener = ReferenceUpdates(moving=moving, policy="policy", watch=Watch())
    listener.on_step(Step(step=3, last=False))
    listener.on_step(Step(step=4, last=False, stopping=True))
    assert seen == [(3, "policy"), (4, "policy")]
