"""Torch's way, the oracle of the kernels, against values derived by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from minimind.native import torch_ops

CPU = torch.device("cpu")


def assert_close(ours: Tensor, expected) -> None:
    torch.testing.assert_close(ours, torch.tensor(expected), rtol=1e-6, atol=1e-6)


def test_rms_norm():
    # The mean square of (3, 4) is 12.5; with eps 3.5 the root is 4.
    x, weight = torch.tensor([[3.0, 4.0]]), torch.tensor([1.0, 10.0])
    assert_close(torch_ops.rms_norm(x, weight, 3.5), [[0.75, 10.0]])
    normed, residual = torch_ops.rms_norm_with_residual(x, weight, 3.5)
    assert_close(normed, [[0.75, 10.0]])
    assert residual is x


def test_rotate_by_a_quarter_and_move_heads_first():
    """Two tokens, two heads, D = 4: channels 0 and 2 are rotated by a quarter at the second token."""
    angles = torch.tensor([[[0.0, 0.0], [math.pi / 2, 0.0]]])
    x = torch.tensor([[[[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]]] * 2])
    rotated = torch_ops.rotate(x, angles.cos(), angles.sin())
    first = [[1.0, 2.0, 3.0, 4.0], [-3.0, 2.0, 1.0, 4.0]]
    second = [[5.0, 6.0, 7.0, 8.0], [-7.0, 6.0, 5.0, 8.0]]
    assert_close(rotated, [[first, second]])


def test_norm_rotate_normalises_before_it_rotates():
    angles = torch.tensor([[[math.pi / 2]]])
    # (3, 4) over 4 is (0.75, 1); times (1, 2) is (0.75, 2); rotated by a quarter (-2, 0.75).
    x, weight = torch.tensor([[[[3.0, 4.0]]]]), torch.tensor([1.0, 2.0])
    assert_close(torch_ops.norm_rotate(x, weight, 3.5, angles.cos(), angles.sin()), [[[[-2.0, 0.75]]]])


def test_swiglu():
    # silu(ln 3) is ln 3 * 3/4.
    assert_close(torch_ops.swiglu(torch.tensor([math.log(3), 0.0]), torch.tensor([4.0, 9.0])), [3 * math.log(3), 0.0])


def test_matmul_into_a_new_and_a_given_matrix():
    a, b, out = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0], [4.0]]), torch.empty(1, 1)
    assert_close(torch_ops.matmul(a, b), [[11.0]])
    assert torch_ops.matmul(a, b, out=out) is out
    assert_close(out, [[11.0]])


def test_linear_maps():
    x, weight = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0], [5.0, 6.0]])
    assert_close(torch_ops.linear(x, weight), [[11.0, 17.0]])
    assert_close(torch_ops.linear(x, weight, torch.tensor([[100.0, 200.0]])), [[111.0, 217.0]])
    first, second = torch_ops.linears(x, weight, weight[:1])
    assert_close(first, [[11.0, 17.0]])
    assert_close(second, [[11.0]])


def test_feed_forward():
    # gate ln 3, up 2: silu(ln 3) * 2 is 1.5 ln 3; down by 4, plus 1.
    one = torch.ones(1, 1)
    out = torch_ops.feed_forward(one, one * math.log(3), one * 2, one * 4, one)
    assert_close(out, [[6 * math.log(3) + 1]])


def test_rejected_mask_is_lower_right_causal():
    """Two rejected tokens after a prefix of two: the first sees three tokens, the second four."""
    mask = torch_ops.rejected_mask(2, 2, CPU)
    assert mask.tolist() == [[True, True, True, False], [True, True, True, True]]


def test_packed_attention_of_equal_scores_averages_what_is_seen():
    """Queries of 0: each token gets the mean of the values that it sees. Prefix 1, chosen 2, rejected 1; a second pair
    of a chosen token only."""
    query, key = torch.zeros(1, 2, 5, 2), torch.ones(1, 1, 5, 2)
    value = torch.tensor([1.0, 2.0, 6.0, 11.0, 4.0])[None, None, :, None].expand(1, 1, 5, 2)
    out = torch_ops.packed_attention(query, key, value, ((1, 2, 1), (0, 1, 0)), 1.0)
    assert out.shape == (1, 5, 2, 2)
    # Chosen: 1; (1 + 2) / 2; (1 + 2 + 6) / 3. Rejected: (1 + 11) / 2. The second pair sees itself.
    expected = torch.tensor([1.0, 1.5, 3.0, 6.0, 4.0])[:, None, None].expand(5, 2, 2)
    torch.testing.assert_close(out[0], expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_cast_and_sum_squares_casts_only(dtype):
    out = torch.empty(2)
    assert torch_ops.cast_and_sum_squares(torch.tensor([0.5, -2.0], dtype=dtype), out) is None
    assert out.tolist() == [0.5, -2.0]


def test_log_sum_over_blocks_and_its_gradient():
    """Probabilities 1/8, 3/8, 4/8 over blocks of one and two tokens; targets in either block, and upstream gradients
    1 and 2: grad * (onehot - softmax)."""
    logits = torch.tensor([[1.0, 3.0, 4.0], [1.0, 3.0, 4.0]]).log()
    targets, grad = torch.tensor([0, 2]), torch.tensor([1.0, 2.0])
    total = torch_ops.LogSum(targets, torch.float32)
    total.add(logits[:, :1], 0)
    total.add(logits[:, 1:], 1)
    log_sum, at_target = total.result()
    assert_close(log_sum, [math.log(8)] * 2)
    assert_close(at_target, [0.0, math.log(4)])
    first = torch_ops.log_sum_gradient(logits[:, :1], targets, 0, log_sum, grad)
    second = torch_ops.log_sum_gradient(logits[:, 1:], targets, 1, log_sum, grad)
    assert_close(first, [[7 / 8], [-2 / 8]])
    assert_close(second, [[-3 / 8, -4 / 8], [-6 / 8, 2 * 4 / 8]])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_log_sum_has_the_bits_of_logsumexp_and_leaves_the_logits(dtype):
    logits = (7 * torch.randn(30, 1000, generator=torch.Generator().manual_seed(0))).to(dtype)
    logits[3] = -torch.inf  # as a bias of -inf makes them: the block adds nothing
    before, targets = logits.clone(), torch.arange(30)
    log_sum = torch_ops.LogSum(targets, torch.float32)
    log_sum.add(logits, 0)
    total, at_target = log_sum.result()
    assert torch.equal(total, logits.float().logsumexp(1))
    assert torch.equal(at_target, logits.float().diagonal())
    assert torch.equal(logits, before)


@pytest.mark.parametrize("widths", [(3,), (1, 2), (1, 1, 1)])
def test_entropy_and_hits_by_hand(widths):
    """Probabilities 1/8, 3/8, 4/8, and one of 1 beside an excluded token; the likeliest token is a hit."""
    logits = torch.tensor([[1.0, 3.0, 4.0], [1.0, 3.0, 4.0], [2.0, 0.0, 0.0]]).log()
    total, start = torch_ops.LogSum(torch.tensor([1, 2, 0]), torch.float32, distribution=True), 0
    for block in logits.split(widths, 1):
        total.add(block, start)
        start += block.shape[1]
    entropies, hits = total.distribution()
    entropy = (math.log(8) + 3 * math.log(8 / 3) + 4 * math.log(2)) / 8
    torch.testing.assert_close(entropies, torch.tensor([entropy, entropy, 0.0]), rtol=1e-6, atol=1e-6)
    assert hits.tolist() == [0, 1, 1]
