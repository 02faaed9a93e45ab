"""The cross-entropy of tokens: its losses, and what it says about itself."""

from __future__ import annotations

import torch

from minimind.objective.interface import AnyObjective
from minimind.objective.token_mean import TokenMean


def test_a_loss_is_minus_the_log_prob():
    assert TokenMean().losses(torch.tensor([-1.0, -0.25])).tolist() == [1.0, 0.25]


def test_it_is_an_objective_without_needs():
    exact: AnyObjective = TokenMean()
    assert (exact.name, exact.needs, dict(exact.statistics)) == ("cross_entropy", frozenset(), {})
    assert not exact.depends_on_split
    assert exact.describe() == "cross-entropy, the mean over the tokens of a global batch"


def test_a_mean_of_means_depends_on_the_split():
    by_batch = TokenMean(mean="micro_batch")
    assert by_batch.depends_on_split
    assert by_batch.options() == {"loss_mean": "micro_batch"}
    assert "micro-batches" in by_batch.describe()
