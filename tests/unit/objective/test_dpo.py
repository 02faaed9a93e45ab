"""The DPO loss, its rewards and row log-probs, against values derived by hand."""

from __future__ import annotations

import math

import pytest
import torch

from minimind import dpo_loss
from minimind.objective.dpo import pair_outcomes, row_log_probs

LN2 = math.log(2)


def minus_log_sigmoid(x: float) -> float:
    return math.log1p(math.exp(-x))


# One pair. Rows are (chosen, rejected); a masked-out token has a value that would be seen.
MASK = torch.tensor([[1, 1, 0], [1, 1, 1]])
POLICY = torch.tensor([[-1.0, -2.0, -99.0], [-3.0, -1.0, -2.0]])
REFERENCE = torch.tensor([[-2.0, -2.0, -77.0], [-1.0, -2.0, -2.0]])
BETA = 0.6
# Sums:  policy -3 and -6, reference -4 and -5. (-3 + 6) - (-4 + 5) = 2;               0.6 * 2   = 1.2
# Means: policy -3/2 and -2, reference -2 and -5/3. (-3/2 + 2) - (-2 + 5/3) = 1/2 + 1/3 = 5/6; 0.6 * 5/6 = 0.5
MARGINS = {False: 1.2, True: 0.5}


@pytest.mark.parametrize("average", [True, False], ids=["mean", "sum"])
def test_loss_of_one_pair_by_hand(average):
    loss = dpo_loss(REFERENCE, POLICY, MASK, BETA, average)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(minus_log_sigmoid(MARGINS[average]), abs=1e-6)


def test_average_is_the_default_as_in_minimind():
    assert dpo_loss(REFERENCE, POLICY, MASK, BETA).item() == pytest.approx(minus_log_sigmoid(0.5), abs=1e-6)


@pytest.mark.parametrize("average", [True, False], ids=["mean", "sum"])
def test_gradient_of_one_pair_by_hand(average):
    """d loss / d margin = -sigmoid(-margin); each of the n counted tokens of a row gets beta (mean: beta / n)
    of it, the rejected row with the other sign."""
    policy = POLICY.clone().requires_grad_()
    dpo_loss(REFERENCE, policy, MASK, BETA, average).backward()
    slope = BETA / (1 + math.exp(MARGINS[average]))
    chosen, rejected = (slope / 2, slope / 3) if average else (slope, slope)
    expected = torch.tensor([[-chosen, -chosen, 0.0], [rejected, rejected, rejected]])
    torch.testing.assert_close(policy.grad, expected, rtol=0, atol=1e-6)


def test_loss_of_two_pairs_is_the_mean_of_theirs():
    """Rows are two chosen, then two rejected; the second pair is the first with its halves exchanged."""
    order = [0, 1, 1, 0]
    loss = dpo_loss(REFERENCE[order], POLICY[order], MASK[order], BETA, average_log_prob=False)
    expected = (minus_log_sigmoid(1.2) + minus_log_sigmoid(-1.2)) / 2
    assert loss.item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("average", [True, False], ids=["mean", "sum"])
def test_a_policy_equal_to_the_reference_has_a_loss_of_ln_2(average):
    assert dpo_loss(POLICY, POLICY, MASK, BETA, average).item() == pytest.approx(LN2, abs=1e-7)


@pytest.mark.parametrize("average", [True, False], ids=["mean", "sum"])
def test_rows_without_targets_count_as_zero(average):
    """Truncation can leave a pair without an answer: ln 2, no gradient, and no division by zero."""
    policy = POLICY.clone().requires_grad_()
    loss = dpo_loss(REFERENCE, policy, torch.zeros_like(MASK), BETA, average)
    loss.backward()
    assert loss.item() == pytest.approx(LN2, abs=1e-7)
    assert torch.equal(policy.grad, torch.zeros_like(POLICY))


def test_bf16_log_probs_are_summed_in_float32():
    """In bf16 256 + 1 is 256: a sum of 300 ones would stop there."""
    ones = torch.full((2, 300), -1.0, dtype=torch.bfloat16)
    mask = torch.ones(2, 300)
    mask[1, :] = 0
    # chosen -300, rejected 0, reference 0 and 0: margin 0.01 * -300 = -3
    loss = dpo_loss(torch.zeros_like(ones), ones, mask, 0.01, average_log_prob=False)
    assert loss.item() == pytest.approx(minus_log_sigmoid(-3.0), abs=1e-6)


def test_a_row_of_one_target_is_its_own_mean():
    """Chosen -1 against -2 of the reference, rejected -3 against -1: 0.6 * ((-1 + 3) - (-2 + 1)) = 1.8."""
    one = torch.tensor([[1, 0, 0], [1, 0, 0]])
    for average in (True, False):
        loss = dpo_loss(REFERENCE, POLICY, one, BETA, average)
        assert loss.item() == pytest.approx(minus_log_sigmoid(1.8), abs=1e-6)


# Two pairs. The first: one target in the prefix, two of chosen, one of rejected; the second: one of chosen
# alone.
LOG_PROBS = torch.tensor([-1.0, -2.0, -3.0, -4.0, -5.0])
COUNTS = torch.tensor([[1, 2, 1], [0, 1, 0]])


def test_row_sums_by_hand():
    # -1 - 2 - 3 and -1 - 4 (the prefix counts for both); -5 and nothing
    assert row_log_probs(LOG_PROBS, COUNTS, average_log_prob=False).tolist() == [[-6.0, -5.0], [-5.0, 0.0]]


def test_counts_are_not_looked_at():
    """A GPU would be waited for; that they make up all targets is what pack and pad see to."""
    assert row_log_probs(LOG_PROBS, COUNTS[:1], average_log_prob=False).tolist() == [[-6.0, -5.0]]


def test_row_means_by_hand():
    # -6 / 3 and -5 / 2; -5 / 1 and 0 for no target
    assert row_log_probs(LOG_PROBS, COUNTS, average_log_prob=True).tolist() == [[-2.0, -2.5], [-5.0, 0.0]]


def test_gradient_of_rows_reaches_shared_targets_from_both_halves():
    log_probs = LOG_PROBS.clone().requires_grad_()
    rows = row_log_probs(log_probs, COUNTS, average_log_prob=True)
    (rows * torch.tensor([[1.0, 10.0], [100.0, 1000.0]])).sum().backward()
    # prefix: 1/3 + 10/2; chosen: 1/3 each; rejected: 10/2; second pair's chosen: 100/1
    torch.testing.assert_close(log_probs.grad, torch.tensor([1 / 3 + 5, 1 / 3, 1 / 3, 5, 100]))


@pytest.mark.parametrize("average", [True, False], ids=["mean", "sum"])
def test_a_batch_without_any_target_has_rows_of_zero(average):
    log_probs = torch.zeros(0, requires_grad=True)
    rows = row_log_probs(log_probs, torch.zeros(2, 3, dtype=torch.int64), average)
    assert torch.equal(rows, torch.zeros(2, 2))
    pair_outcomes(rows, rows.detach(), BETA).losses.sum().backward()
    assert log_probs.grad.shape == (0,)


def test_outcomes_by_hand():
    policy = torch.tensor([[-3.0, -6.0], [-1.0, -1.0], [-4.0, -2.0]])
    reference = torch.tensor([[-4.0, -5.0], [-2.0, -2.0], [-4.0, -4.0]])
    # rewards 0.5 * (1, -1), 0.5 * (1, 1), 0.5 * (0, 2): margins 1, 0, -1
    outcomes = pair_outcomes(policy, reference, beta=0.5)
    assert outcomes.chosen_rewards.tolist() == [0.5, 0.5, 0.0]
    assert outcomes.rejected_rewards.tolist() == [-0.5, 0.5, 1.0]
    assert outcomes.margins.tolist() == [1.0, 0.0, -1.0]
    assert outcomes.chosen_log_probs.tolist() == [-3.0, -1.0, -4.0]
    assert outcomes.rejected_log_probs.tolist() == [-6.0, -1.0, -2.0]
    expected = [minus_log_sigmoid(1.0), LN2, minus_log_sigmoid(-1.0)]
    assert outcomes.losses.tolist() == pytest.approx(expected, abs=1e-6)


def test_a_tie_counts_half():
    policy = torch.tensor([[-1.0, -2.0], [-2.0, -2.0], [-3.0, -2.0]])
    reference = torch.full((3, 2), -2.0)
    assert pair_outcomes(policy, reference, beta=0.1).accuracies.tolist() == [1.0, 0.5, 0.0]


def test_only_the_losses_carry_a_gradient():
    policy = torch.tensor([[-1.0, -2.0]], requires_grad=True)
    outcomes = pair_outcomes(policy, torch.tensor([[-1.5, -2.0]]), beta=0.1)
    assert outcomes.losses.requires_grad
    others = (
        outcomes.chosen_rewards,
        outcomes.rejected_rewards,
        outcomes.chosen_log_probs,
        outcomes.rejected_log_probs,
        outcomes.margins,
        outcomes.accuracies,
    )
    assert not any(tensor.requires_grad for tensor in others)


def test_extreme_margins_neither_overflow_nor_lose_the_gradient():
    """-log sigmoid(-x) is x for a large x, with a slope of -1; for a large margin it is 0, with none."""
    policy = torch.tensor([[-1000.0, 0.0], [0.0, -1000.0]], requires_grad=True)
    losses = pair_outcomes(policy, torch.zeros(2, 2), beta=1.0).losses
    losses.sum().backward()
    assert losses.tolist() == [1000.0, 0.0]
    assert policy.grad.tolist() == [[-1.0, 1.0], [0.0, 0.0]]


@pytest.mark.parametrize("average", [True, False], ids=["mean", "sum"])
def test_the_training_path_equals_minimind_form(average):
    """The same random pairs as padded rows with a mask, and as targets with counts."""
    generator = torch.Generator().manual_seed(1)
    counts = torch.tensor([[2, 3, 1], [0, 4, 2], [3, 0, 5]])
    policy, reference = (-torch.rand(int(counts.sum()), generator=generator) * 5 for _ in range(2))
    padded = {"policy": torch.full((6, 9), -50.0), "reference": torch.full((6, 9), -60.0)}
    mask, start = torch.zeros(6, 9), 0
    for index, (prefix, chosen, rejected) in enumerate(counts.tolist()):
        middle, end = start + prefix + chosen, start + prefix + chosen + rejected
        rows = (range(start, middle), [*range(start, start + prefix), *range(middle, end)])
        for row, targets in zip((index, index + 3), rows, strict=True):
            mask[row, : len(targets)] = 1
            padded["policy"][row, : len(targets)] = policy[list(targets)]
            padded["reference"][row, : len(targets)] = reference[list(targets)]
        start = end
    expected = dpo_loss(padded["reference"], padded["policy"], mask, BETA, average)
    rows = (row_log_probs(values, counts, average) for values in (policy, reference))
    torch.testing.assert_close(pair_outcomes(*rows, BETA).losses.mean(), expected, rtol=0, atol=1e-6)
