"""What all registered losses have in common."""

from __future__ import annotations

import dataclasses
import inspect

import pytest
import torch

from minimind.objective.losses import LossInputs, Need, PairScores, loss_class, loss_names
from minimind.objective.losses.bases import logistic
from tests.unit.objective.losses.pairs import LN2, differences, inputs, log_sigmoid, slopes, with_tokens
from tests.unit.training.host_waits import DEVICE, host_waits_raise

COUNTS = [[2, 3, 1], [0, 4, 2], [1, 1, 5], [3, 2, 2]]


def random_inputs(seed, scale=3.0):
    """Four pairs of several targets; the policy's log-probs are near the reference's and below 0."""
    generator = torch.Generator().manual_seed(seed)
    reference = -torch.rand(4, 2, generator=generator, dtype=torch.float64) * 10 - scale - 1
    near = torch.rand(4, 2, generator=generator, dtype=torch.float64) * 2 * scale - scale
    return inputs(reference + near, reference, counts=COUNTS)


@pytest.fixture(params=loss_names())
def loss(request):
    return loss_class(request.param)()


def test_gradients_equal_finite_differences(loss):
    if loss.name in ("wpo", "kto"):
        pytest.skip("a part of it has no gradient; see its own test")
    for seed in range(3):
        given = random_inputs(seed)
        torch.testing.assert_close(slopes(loss, given), differences(loss, given), rtol=1e-5, atol=1e-7)


def test_a_loss_starts_at_its_start_value(loss):
    same = inputs([[-1.5, -2.5], [-0.1, -9.0]], [[-1.5, -2.5], [-0.1, -9.0]])
    if loss.start_value() is not None:
        assert loss(same).losses.tolist() == pytest.approx([loss.start_value()] * 2, abs=1e-9)


def test_a_loss_returns_what_it_declares(loss):
    result = loss(random_inputs(1))
    assert tuple(result.metrics) == loss.metrics
    assert result.statistics.keys() == loss.statistics.keys()
    for values in (*result.metrics.values(), *result.statistics.values()):
        assert values.shape == (4,)
        assert not values.requires_grad


def test_only_the_losses_carry_a_gradient(loss):
    given = random_inputs(2)
    policy = with_tokens(given.policy.sums.requires_grad_(), given.policy.target_counts)
    result = loss(dataclasses.replace(given, policy=policy))
    assert result.losses.requires_grad
    assert not any(values.requires_grad for values in (*result.metrics.values(), *result.statistics.values()))


def test_float32_agrees_with_float64(loss):
    given = random_inputs(3)
    single = dataclasses.replace(
        given,
        policy=with_tokens(given.policy.sums.float(), given.policy.target_counts),
        reference=with_tokens(given.reference.sums.float(), given.reference.target_counts),
    )
    assert loss(single).losses.dtype == torch.float32
    torch.testing.assert_close(loss(single).losses.double(), loss(given).losses, rtol=2e-5, atol=1e-5)


def test_the_first_update_prefers_chosen(loss):
    """Where policy and reference are equal, a step downhill raises the log-prob of chosen over that of rejected."""
    chosen, rejected = slopes(loss, inputs([[-4.0, -4.0]], [[-4.0, -4.0]]))[0].tolist()
    assert chosen < rejected or loss.name == "discopop"  # see its own test
    # Only apo_down lowers the log-prob of chosen, by intention.
    assert chosen < 0 or loss.name in ("apo_down", "discopop")


def test_a_loss_that_needs_no_reference_ignores_it(loss):
    given = random_inputs(4)
    if Need.REFERENCE in loss.needs:
        with pytest.raises(AssertionError):
            loss(dataclasses.replace(given, reference=None))
    else:
        assert torch.equal(loss(dataclasses.replace(given, reference=None)).losses, loss(given).losses)


def test_a_loss_needs_no_value_of_the_device(loss):
    """Else the host would wait for a GPU in every step."""
    counts = torch.ones(4, 3, dtype=torch.int64, device=DEVICE)
    shapes = {"sums": (4, 2), "per_token": (12,), "collision_sums": (4, 2)}
    zeros = {name: torch.zeros(shape, device=DEVICE) for name, shape in shapes.items()}
    reference = PairScores(target_counts=counts, **zeros)
    policy = PairScores(target_counts=counts, **{name: one.clone().requires_grad_() for name, one in zeros.items()})
    scores = torch.zeros(4, 2, device=DEVICE)
    means = {name: torch.zeros((), device=DEVICE) for name in loss.statistics}
    with host_waits_raise():
        given = LossInputs(
            policy=policy,
            reference=reference,
            statistics=means,
            scores=scores,
            labels=scores[:, 0] > 1,
            mismatched=scores[:, 1].mean(),
        )
        loss(given).losses.sum().backward()
    assert any(one.grad is not None and one.grad.is_meta for one in (policy.sums, policy.per_token))


def test_the_docstring_has_title_paper_and_formula(loss):
    """The table in launch/README.md is made of them."""
    assert inspect.getdoc(type(loss)).count("\n\n") >= 2


def test_logistic_loss_by_hand():
    logits = torch.tensor([0.0, 2.0, -1e4], dtype=torch.float64)
    assert logistic(logits).tolist() == pytest.approx([LN2, -log_sigmoid(2), 1e4])
    expected = [LN2, -0.7 * log_sigmoid(2) - 0.3 * log_sigmoid(-2), 0.7e4]
    assert logistic(logits, 0.3).tolist() == pytest.approx(expected)
