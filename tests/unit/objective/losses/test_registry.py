"""The registry of losses."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import pytest

from minimind.objective.losses import (
    Need,
    PairLosses,
    PreferenceLoss,
    SigmoidLoss,
    build_objective,
    loss_class,
    loss_names,
    register_loss,
    registry,
)
from tests.unit.objective.losses.pairs import inputs


@pytest.fixture(autouse=True)
def copied(monkeypatch):
    """A copy of the registry that a test may add to."""
    monkeypatch.setattr(registry, "_LOSSES", dict(registry._LOSSES))


def test_a_registered_loss_is_found_by_its_name():
    @register_loss
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Difference(PreferenceLoss):
        """Rejected minus chosen, without a reference."""

        name: ClassVar[str] = "difference"
        needs: ClassVar[frozenset[Need]] = frozenset()
        metrics: ClassVar[tuple[str, ...]] = ("difference",)

        def start_value(self) -> None:
            return None

        def __call__(self, given):
            rows = given.policy.rows(self.average_log_prob)
            values = rows[:, 1] - rows[:, 0]
            return PairLosses(losses=values, metrics={"difference": values.detach()})

    assert loss_class("difference") is Difference
    assert "difference" in loss_names()
    assert build_objective("difference:2")(inputs([[-1.0, -4.0]])).losses.tolist() == [-6.0]


def test_two_losses_cannot_share_a_name():
    with pytest.raises(ValueError, match="two losses are named 'sigmoid'"):

        @register_loss
        class Other(SigmoidLoss):
            pass


def test_an_unknown_name_is_a_key_error():
    with pytest.raises(KeyError, match="sigmoidal"):
        loss_class("sigmoidal")
