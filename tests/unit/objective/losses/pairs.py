"""Inputs of losses for the tests: log-probs of pairs, and derivatives by finite differences."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from minimind.objective.losses import LossInputs, PairScores, PreferenceLoss

LN2 = math.log(2)


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x)) if x > -30 else x


def sigmoid(x: float) -> float:
    return math.exp(log_sigmoid(x))


# Log-prob of each target of a prefix.
PREFIX = -0.5


def scores(sums: Sequence[Sequence[float]] | Tensor, counts: Sequence[Sequence[int]] | None = None) -> PairScores:
    """Summed log-probs (N, 2) in float64; counts (N, 3), one target in each row if not given."""
    tensor = torch.as_tensor(sums, dtype=torch.float64)
    return with_tokens(tensor, torch.tensor(counts or [[0, 1, 1]] * len(tensor)))


def with_tokens(sums: Tensor, counts: Tensor) -> PairScores:
    """Single targets that add up to the sums, with the gradient of these; after the prefix they grow in size."""
    tokens = []
    for pair, (prefix, *own) in enumerate(counts.tolist()):
        tokens.append(torch.full((prefix,), PREFIX, dtype=sums.dtype, device=sums.device))
        for row, count in enumerate(own):
            shares = torch.arange(1, count + 1, device=sums.device) / (count * (count + 1) / 2)
            tokens.append((sums[pair, row] - prefix * PREFIX) * shares.to(sums.dtype))
    # Like a model whose tokens each have a collision probability of exp(-1).
    collisions = -(counts[:, :1] + counts[:, 1:]).to(sums.dtype)
    return PairScores(sums=sums, target_counts=counts, per_token=torch.cat(tokens), collision_sums=collisions)


def inputs(
    policy: Sequence[Sequence[float]] | Tensor,
    reference: Sequence[Sequence[float]] | Tensor | None = None,
    *,
    counts: Sequence[Sequence[int]] | None = None,
    statistics: Mapping[str, float] | None = None,
) -> LossInputs:
    """Inputs of N pairs; the reference gives 0 to every row if it is not given."""
    own = scores(policy, counts)
    known = scores(torch.zeros_like(own.sums) if reference is None else reference, counts)
    return LossInputs(
        scores=torch.tensor([[2.0, 0.5]] * len(own.sums), dtype=torch.float64),
        labels=torch.arange(len(own.sums)) % 2 == 0,
        policy=own,
        reference=known,
        # As if the second rows were the mismatched ones.
        mismatched=(own.sums - known.sums).detach()[:, 1].mean(),
        statistics={name: torch.tensor(value, dtype=torch.float64) for name, value in (statistics or {}).items()},
    )


def values(loss: PreferenceLoss, given: LossInputs) -> list[float]:
    return loss(given).losses.tolist()


def slopes(loss: Callable[[LossInputs], object], given: LossInputs) -> Tensor:
    """(N, 2) derivative of each pair's loss in its own log-probs, by autograd."""
    sums = given.policy.sums.clone().requires_grad_()
    policy = with_tokens(sums, given.policy.target_counts)
    result = loss(dataclasses.replace(given, policy=policy))
    (gradient,) = torch.autograd.grad(result.losses.sum(), sums)
    return gradient


def differences(loss: Callable[[LossInputs], object], given: LossInputs, step: float = 1e-6) -> Tensor:
    """The same by central differences."""
    found = torch.zeros_like(given.policy.sums)
    for pair in range(found.shape[0]):
        for row in range(2):
            total = []
            for sign in (1, -1):
                sums = given.policy.sums.clone()
                sums[pair, row] += sign * step
                policy = with_tokens(sums, given.policy.target_counts)
                shifted = dataclasses.replace(given, policy=policy)
                total.append(loss(shifted).losses.sum().item())
            found[pair, row] = (total[0] - total[1]) / (2 * step)
    return found
