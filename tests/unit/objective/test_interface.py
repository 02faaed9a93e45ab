"""What setup asks of an objective: a mix of losses over pairs answers it."""

from __future__ import annotations

from minimind.objective.interface import AnyObjective
from minimind.objective.losses import Need, build_objective


def test_a_loss_over_pairs_is_an_objective():
    objective: AnyObjective = build_objective("sigmoid")
    assert objective.name == "sigmoid"
    assert Need.REFERENCE in objective.needs
    assert objective.statistics == {}
    assert objective.options()["beta"] == 0.1
    assert objective.describe().startswith("sigmoid (")
