"""Row log-probs from counted targets, against values derived by hand."""

from __future__ import annotations

import pytest
import torch

from minimind.objective.rows import head_sums, row_lengths, row_log_probs

# Two pairs. First: one target in the prefix, two of chosen, one of rejected. Second: one of chosen.
LOG_PROBS = torch.tensor([-1.0, -2.0, -3.0, -4.0, -5.0])
COUNTS = torch.tensor([[1, 2, 1], [0, 1, 0]])


def test_row_sums_by_hand():
    # -1 - 2 - 3 and -1 - 4 (the prefix counts for both); -5 and nothing
    assert row_log_probs(LOG_PROBS, COUNTS, average_log_prob=False).tolist() == [[-6.0, -5.0], [-5.0, 0.0]]


def test_head_sums_by_hand():
    """The first pair's rejected row has 2 targets: -1 - 2 and -1 - 4. The second's has none, so heads are empty."""
    log_probs = LOG_PROBS.clone().requires_grad_()
    heads = head_sums(log_probs, COUNTS)
    assert heads.tolist() == [[-3.0, -5.0], [0.0, 0.0]]
    (heads * torch.tensor([1.0, 10.0])).sum().backward()
    assert log_probs.grad.tolist() == [11.0, 1.0, 0.0, 10.0, 0.0]


def test_counts_are_not_checked():
    """A check would make the host wait for a GPU; `pack` and `pad` guarantee the counts."""
    assert row_log_probs(LOG_PROBS, COUNTS[:1], average_log_prob=False).tolist() == [[-6.0, -5.0]]


def test_row_means_by_hand():
    # -6 / 3 and -5 / 2; -5 / 1 and 0 for no target
    assert row_log_probs(LOG_PROBS, COUNTS, average_log_prob=True).tolist() == [[-2.0, -2.5], [-5.0, 0.0]]


def test_shared_targets_get_the_gradient_of_both_rows():
    log_probs = LOG_PROBS.clone().requires_grad_()
    rows = row_log_probs(log_probs, COUNTS, average_log_prob=True)
    (rows * torch.tensor([[1.0, 10.0], [100.0, 1000.0]])).sum().backward()
    # prefix: 1/3 + 10/2; chosen: 1/3 each; rejected: 10/2; second pair's chosen: 100/1
    torch.testing.assert_close(log_probs.grad, torch.tensor([1 / 3 + 5, 1 / 3, 1 / 3, 5, 100]))


@pytest.mark.parametrize("average", [True, False], ids=["mean", "sum"])
def test_a_batch_without_targets_has_rows_of_zero(average):
    log_probs = torch.zeros(0, requires_grad=True)
    rows = row_log_probs(log_probs, torch.zeros(2, 3, dtype=torch.int64), average)
    assert torch.equal(rows, torch.zeros(2, 2))
    rows.sum().backward()
    assert log_probs.grad.shape == (0,)


def test_row_lengths_count_the_prefix_for_both_rows():
    assert row_lengths(COUNTS).tolist() == [[3, 2], [1, 0]]
