"""MiniMind's form of the DPO loss, against values derived by hand."""

from __future__ import annotations

import math

import pytest
import torch

from minimind import dpo_loss
from minimind.objective.losses import LossInputs, PairScores, SigmoidLoss
from minimind.objective.rows import row_sums

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


def test_loss_of_two_pairs_is_the_mean_of_their_losses():
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


@pytest.mark.parametrize("average", [True, False], ids=["mean", "sum"])
def test_sigmoid_loss_of_counted_targets_equals_minimind_form(average):
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
    scores = (PairScores(sums=row_sums(x, counts), target_counts=counts) for x in (policy, reference))
    inputs = LossInputs(**dict(zip(("policy", "reference"), scores, strict=True)))
    loss = SigmoidLoss(beta=BETA, average_log_prob=average)
    torch.testing.assert_close(loss(inputs).losses.mean(), expected, rtol=0, atol=1e-6)
