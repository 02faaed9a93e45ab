"""Chooses the pairs of each step: a pure function of the step number, so a resumed run needs no sampler state.

    step, rank -> global batch (consecutive pairs of the shuffled epochs) -> the rank's micro-batches (pair indices)

A global batch depends on the seed and its size, not on the number of ranks. Costs and token counts only decide how its
pairs are distributed over ranks and micro-batches.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from minimind.data.mix import Mix


class Sampler(Protocol):
    """The order of what a run trains on: `PairSampler`, or that of streamed rows (streaming/rows.py)."""

    @property
    def world_size(self) -> int: ...

    @property
    def global_batch_size(self) -> int: ...

    def epoch_of(self, step: int) -> float: ...

    def micro_batches(self, step: int, rank: int) -> list[list[int]]: ...

    def position_after(self, step: int) -> dict[str, int | str]: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairSampler:
    """The order of pairs in a run, and their distribution over ranks and micro-batches.

    Attributes:
        mix: number of pairs of each source, and how often an epoch takes them; N pairs altogether.
        epochs: number of epochs.
        micro_batch_size: pairs per rank and micro-batch.
        accumulation_steps: micro-batches per global step, if there is no token budget.
        world_size: number of ranks.
        shuffle: True draws a new order for each epoch from seed and epoch; False keeps that of the sources.
        seed: seed of the shuffled order.
        costs: (N,) estimated cost of training on each pair. If given, the pairs of a global batch are
            distributed so that all micro-batches cost about the same. The global batch itself, and with it the mean
            loss and its gradient, does not change.
        tokens: (N,) number of tokens of each pair in a pack; required with a token budget.
        token_budget: largest number of tokens of a micro-batch; requires costs. A longer pair gets a micro-batch of
            its own. Every rank has the same number of pairs in a step and splits them into the same number of
            micro-batches, as few as the rank with most tokens allows.
    """

    mix: Mix
    epochs: int
    micro_batch_size: int
    accumulation_steps: int
    world_size: int
    shuffle: bool
    seed: int
    costs: NDArray[np.float64] | None = None
    tokens: NDArray[np.int64] | None = None
    token_budget: int | None = None

    @property
    def global_batch_size(self) -> int:
        return self.micro_batch_size * self.accumulation_steps * self.world_size

    @property
    def total_pairs(self) -> int:
        """Number of pairs that all epochs take."""
        return self.mix.start(self.epochs)

    @property
    def total_steps(self) -> int:
        """Number of global steps in the run. Only full global batches count."""
        return self.total_pairs // self.global_batch_size

    @property
    def left_over(self) -> int:
        """Number of pairs at the end of the last epoch that do not fill a global batch and are not trained on."""
        return self.total_pairs % self.global_batch_size

    def epoch_of(self, step: int) -> float:
        """Number of epochs completed after global step `step` (from 1)."""
        return float(step * self.global_batch_size / self.mix.pairs_per_epoch)

    def micro_batches(self, step: int, rank: int) -> list[list[int]]:
        """Pair indices of one rank in global step `step` (from 1): one list per micro-batch.

        All ranks have the same number of micro-batches, because under ZeRO-3 they run every forward together.
        """
        batch = self._batch(step)
        return distribute(
            batch,
            None if self.costs is None else self.costs[batch],
            None if self.tokens is None else self.tokens[batch],
            micro_batch_size=self.micro_batch_size,
            accumulation_steps=self.accumulation_steps,
            world_size=self.world_size,
            token_budget=self.token_budget,
        )[rank]

    def position_after(self, step: int) -> dict[str, int | str]:
        """Position after global step `step` (from 1), for the checkpoint's manifest.

        Returns:
            pairs: number of pairs used so far.
            last: digest of the step's global batch. Two samplers with equal positions draw the same global batches,
                whatever their numbers of ranks.
        """
        last = ",".join(map(str, self._batch(step)))
        digest = hashlib.sha256(last.encode()).hexdigest()[:16]
        return {"pairs": step * self.global_batch_size, "last": digest}

    def _batch(self, step: int) -> list[int]:
        """Indices of the pairs of a global batch, at consecutive positions counted over all epochs."""
        batch: list[int] = []
        # From the step alone: a resumed run, on any number of ranks, needs no other state.
        position = (step - 1) * self.global_batch_size
        while (missing := self.global_batch_size - len(batch)) > 0:
            epoch = self.mix.epoch_at(position)
            order = _epoch_order(self.mix, self.seed, epoch, self.shuffle)
            first = position - self.mix.start(epoch)
            batch += order[first : first + missing].tolist()
            position = self.mix.start(epoch + 1)
        return batch


# Two entries, because a global batch may contain the end of one epoch and the start of the next.
@functools.lru_cache(maxsize=2)
def _epoch_order(mix: Mix, seed: int, epoch: int, shuffle: bool) -> NDArray[np.int64]:
    draws = mix.draws(epoch, seed if shuffle else None)
    return draws[np.random.default_rng((seed, epoch)).permutation(len(draws))] if shuffle else draws


def distribute(
    batch: Sequence[int],
    costs: NDArray[np.float64] | None,
    tokens: NDArray[np.int64] | None,
    *,
    micro_batch_size: int,
    accumulation_steps: int,
    world_size: int,
    token_budget: int | None,
) -> list[list[list[int]]]:
    """Distribute a global batch over ranks and micro-batches.

    Args:
        batch: pair indices.
        costs, tokens: of each pair of the batch; see `PairSampler`. Without costs micro-batches have consecutive pairs.
        micro_batch_size, accumulation_steps, world_size, token_budget: as in `PairSampler`.

    Returns:
        The micro-batches of each rank.
    """
    size, ranks = micro_batch_size, world_size
    places = list(range(len(batch)))
    if costs is None:
        groups = [places[start : start + size] for start in range(0, len(places), size)]
        split = [groups[rank::ranks] for rank in range(ranks)]
    elif token_budget is not None:
        assert tokens is not None
        shares = _groups(places, costs, ranks, accumulation_steps * size)
        split = _split_by_tokens(shares, costs, tokens, token_budget)
    else:
        groups = _groups(places, costs, accumulation_steps * ranks, size)
        split = [groups[rank::ranks] for rank in range(ranks)]
    return [[[batch[place] for place in group] for group in of_rank] for of_rank in split]


def _groups(pairs: list[int], costs: NDArray[Any], num_groups: int, size: int) -> list[list[int]]:
    """Distribute pairs over groups of about equal cost.

    Greedy: the most expensive pair first, each to the cheapest group with room.

    Args:
        size: largest number of pairs in a group.
    """
    groups: list[list[int]] = [[] for _ in range(num_groups)]
    totals = [0.0] * num_groups
    # Ties by place: every rank must find the same groups by itself.
    for place in sorted(range(len(pairs)), key=lambda place: (-costs[pairs[place]], place)):
        group = min((g for g in range(num_groups) if len(groups[g]) < size), key=lambda g: (totals[g], g))
        groups[group].append(place)
        totals[group] += float(costs[pairs[place]])
    # Sorted, so that a single group equals the batch: one micro-batch per step then needs no reordering.
    return [[pairs[place] for place in sorted(group)] for group in groups]


def _split_by_tokens(
    shares: list[list[int]], costs: NDArray[np.float64], tokens: NDArray[np.int64], budget: int
) -> list[list[list[int]]]:
    """Split each rank's share into micro-batches within the token budget: the same number for all ranks, as few as
    possible.

    Args:
        shares: the pairs of each rank, of equal number.
    """
    # A pair over the budget counts as a full micro-batch. The sum gives a lower bound; more are tried until all fit.
    most_tokens = max(int(np.minimum(tokens[share], budget).sum()) for share in shares)
    for number in range(max(1, -(-most_tokens // budget)), len(shares[0]) + 1):
        # By tokens, which the budget is about: costs decided which rank has which pair.
        split = [_groups(share, tokens, number, len(share)) for share in shares]
        if all(len(part) == 1 or tokens[part].sum() <= budget for parts in split for part in parts):
            break
    # Ranks wait for each other in every micro-batch, so those with the same index should cost about the same.
    return [sorted(parts, key=lambda part: -costs[part].sum()) for parts in split]
