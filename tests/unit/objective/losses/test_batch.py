"""Losses of the global batch, against values derived by hand."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from minimind.objective.losses import Need, build_objective, loss_class
from tests.unit.objective.losses.pairs import LN2, inputs, log_sigmoid, slopes, values

# Log-ratios: chosen 4, -2, 1; rejected 3, 0, -5; margins 1, -2, 6.
RATIOS = [[4.0, 3.0], [-2.0, 0.0], [1.0, -5.0]]


@pytest.mark.parametrize("smoothing", [0.0, 0.25])
def test_aot_compares_quantiles_of_margins(smoothing):
    """Margins of the policy 2, -1, 0 and of the reference 5, 1, -3: sorted -1, 0, 2 and -3, 1, 5; they differ by 2, -1,
    -3. The pairs are at the third, first and second place."""
    given = inputs([[2.0, 0.0], [-1.0, 0.0], [0.0, 0.0]], [[5.0, 0.0], [1.0, 0.0], [-3.0, 0.0]])
    expected = [-(1 - smoothing) * log_sigmoid(0.5 * m) - smoothing * log_sigmoid(-0.5 * m) for m in (-3, 2, -1)]
    assert values(loss_class("aot")(beta=0.5, label_smoothing=smoothing), given) == pytest.approx(expected, rel=1e-9)


def test_aot_unpaired_compares_quantiles_of_both_answers():
    """Chosen -2, 1, 4 against rejected -5, 0, 3: differences of 3, 1, 1; the pairs are third, first, second."""
    expected = [-log_sigmoid(0.5 * m) for m in (1, 3, 1)]
    given = inputs(RATIOS)
    assert values(loss_class("aot_unpaired")(beta=0.5), given) == pytest.approx(expected, rel=1e-9)
    # The rejected answer 3 of the first pair is compared with the chosen 4, that of the second with 1.
    slope = slopes(loss_class("aot_unpaired")(beta=0.5), given)
    assert slope[0, 1].item() == pytest.approx(-slope[0, 0].item())
    assert slope[1, 1].item() == pytest.approx(-slope[2, 0].item())


@pytest.mark.parametrize("name", ["aot", "aot_unpaired", "beta_dpo"])
def test_all_start_at_ln_2(name):
    assert loss_class(name)().start_value() == pytest.approx(LN2)
    assert Need.GLOBAL_BATCH in loss_class(name).needs


@pytest.mark.parametrize(("usual", "beta"), [(None, 0.2), (0.5, 0.2 * (1 + 0.6 * (5 / 3 - 0.5))), (9.0, 1e-3)])
def test_beta_follows_the_mean_margin(usual, beta):
    """The mean margin is 5/3. In the first step there is no running mean; beta does not become negative."""
    given = inputs(RATIOS, statistics={} if usual is None else {"margin": usual})
    result = loss_class("beta_dpo")(beta=0.2)(given)
    assert result.losses.tolist() == pytest.approx([-log_sigmoid(beta * m) for m in (1, -2, 6)], rel=1e-6)
    assert result.metrics["beta"].tolist() == pytest.approx([beta] * 3)
    assert result.statistics["margin"].tolist() == [1.0, -2.0, 6.0]
    # beta itself has no gradient: each pair's slope is that of DPO.
    slope = slopes(loss_class("beta_dpo")(beta=0.2), given)[:, 0].tolist()
    assert slope == pytest.approx([-beta / (1 + pow(2.718281828459045, beta * m)) for m in (1, -2, 6)])


def test_momentum_is_the_weight_of_the_past():
    assert loss_class("beta_dpo")(momentum=0.25).statistics == {"margin": 0.25}


@pytest.mark.parametrize(
    "spec", ["aot", "aot_unpaired:2,sigmoid:0.5", "beta_dpo,bco_pair:0.2,sft:0.1", "kto", "kto:0.5,bco:1"]
)
@pytest.mark.parametrize("split", [[6], [2, 4], [1, 1, 3, 1]])
def test_shares_of_a_split_batch_add_up_to_the_whole(spec, split):
    """Losses, metrics and gradients of micro-batches are those of all pairs at once."""
    generator = torch.Generator().manual_seed(0)
    policy, reference = (torch.randn(6, 2, generator=generator, dtype=torch.float64) - 4 for _ in range(2))
    counts = [[0, 2, 3], [1, 1, 1], [0, 5, 2], [2, 2, 2], [0, 1, 4], [3, 0, 1]]
    objective = build_objective(spec)
    means = dict.fromkeys(objective.statistics, 0.125)
    whole = inputs(policy, reference, counts=counts, statistics=means)
    expected, slope, shares = objective(whole), slopes(objective, whole), objective.shares(whole)
    for indices in torch.arange(6).split(split):
        part = inputs(policy[indices], reference[indices], counts=[counts[i] for i in indices], statistics=means)
        part = dataclasses.replace(part, labels=whole.labels[indices], mismatched=whole.mismatched)
        own = {name: share.of(indices) for name, share in shares.items()}

        def of_part(given, own=own):
            return objective(type(given)(**{**vars(given), "shares": own}))

        result = of_part(part)
        torch.testing.assert_close(result.losses, expected.losses[indices], rtol=1e-12, atol=0)
        torch.testing.assert_close(slopes(of_part, part), slope[indices], rtol=1e-9, atol=1e-12)
        for name, metric in result.metrics.items():
            torch.testing.assert_close(metric, expected.metrics[name][indices])
        assert result.statistics.keys() == objective.statistics.keys()
