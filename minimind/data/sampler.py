"""Which pairs a step trains on: a pure function of the step, so that going on needs no state but its number.

The epochs are one endless-looking stream of pairs, dealt in global batches; a global batch is dealt to micro-batches
and ranks by cost. Any step's pairs can be named without walking there.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairSampler:
    """The order of pairs in a run.

    Attributes:
        num_pairs: pairs in the data set.
        epochs: passes over it.
        micro_batch_size: pairs per rank and micro-batch.
        accumulation_steps: micro-batches per global step; without a token budget.
        world_size: ranks.
        shuffle: a new order for every epoch, drawn from seed and epoch; else file order.
        seed: of the order.
        costs: (num_pairs,) what each pair costs to train on. Given them, the pairs of a global batch are dealt so that
            every micro-batch of every rank costs about the same; which global batch a pair is in stays as it is, and
            with it the mean DPO loss and its gradient.
        tokens: (num_pairs,) how long each pair's part of a pack is; needs costs, and goes with a token budget.
        token_budget: tokens of a micro-batch at most, if any; a pair that is longer stands alone. Then a rank's pairs
            of a step, still as many on every rank, are dealt into as few micro-batches as the fullest rank needs.
    """

    num_pairs: int
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
    def total_steps(self) -> int:
        """Global steps in the whole run; only full global batches make one."""
        return self.num_pairs * self.epochs // self.global_batch_size

    @property
    def left_over(self) -> int:
        """Pairs at the very end of the stream that do not fill a global batch."""
        return self.num_pairs * self.epochs % self.global_batch_size

    def epoch_of(self, step: int) -> float:
        """How many epochs are done after global step `step` (from 1)."""
        return step * self.global_batch_size / self.num_pairs

    def micro_batches(self, step: int, rank: int) -> list[list[int]]:
        """Pair indices of global step `step` (from 1) for one rank: one list per micro-batch, as many on each rank."""
        batch = self._batch(step)
        size, ranks = self.micro_batch_size, self.world_size
        if self.costs is None:
            starts = ((micro * ranks + rank) * size for micro in range(self.accumulation_steps))
            return [batch[start : start + size] for start in starts]
        if self.token_budget is not None:
            assert self.tokens is not None
            hands = _deal(batch, self.costs, ranks, self.accumulation_steps * size)
            return _deal_by_tokens(hands, self.costs, self.tokens, self.token_budget)[rank]
        dealt = _deal(batch, self.costs, self.accumulation_steps * ranks, size)
        return dealt[rank::ranks]

    def position_after(self, step: int) -> dict[str, int | str]:
        """Where the stream stands after global step `step` (from 1): how many pairs it has dealt, and a digest of the
        last step's. Streams that agree in both deal the same pairs a step, however many ranks share them."""
        last = ",".join(map(str, self._batch(step)))
        digest = hashlib.sha256(last.encode()).hexdigest()[:16]
        return {"pairs": step * self.global_batch_size, "last": digest}

    def _batch(self, step: int) -> list[int]:
        start = (step - 1) * self.global_batch_size
        return [self._pair(position) for position in range(start, start + self.global_batch_size)]

    def _pair(self, position: int) -> int:
        epoch, index = divmod(position, self.num_pairs)
        return int(_epoch_order(self.num_pairs, self.seed, epoch)[index]) if self.shuffle else index


@functools.lru_cache(maxsize=2)
def _epoch_order(num_pairs: int, seed: int, epoch: int) -> NDArray[np.int64]:
    return np.random.default_rng((seed, epoch)).permutation(num_pairs)


def _deal(pairs: list[int], costs: NDArray[Any], hands: int, size: int) -> list[list[int]]:
    """Deal pairs into hands of at most this size and about equal cost: the dearest first, each to the cheapest hand
    with room.

    Within a hand the pairs keep their order, so that one hand is simply the batch.
    """
    dealt: list[list[int]] = [[] for _ in range(hands)]
    totals = [0.0] * hands
    for place in sorted(range(len(pairs)), key=lambda place: (-costs[pairs[place]], place)):
        hand = min((h for h in range(hands) if len(dealt[h]) < size), key=lambda h: (totals[h], h))
        dealt[hand].append(place)
        totals[hand] += float(costs[pairs[place]])
    return [[pairs[place] for place in sorted(hand)] for hand in dealt]


def _deal_by_tokens(
    hands: list[list[int]], costs: NDArray[np.float64], tokens: NDArray[np.int64], budget: int
) -> list[list[list[int]]]:
    """Split every rank's hand into micro-batches within the budget: as many for all ranks, since they run every forward
    together, as few as the fullest hand allows, and the dearest first, so that those that run together cost alike."""
    fewest = max(int(np.minimum(tokens[hand], budget).sum()) for hand in hands)
    for number in range(max(1, -(-fewest // budget)), len(hands[0]) + 1):
        split = [_deal(hand, tokens, number, len(hand)) for hand in hands]
        if all(len(part) == 1 or tokens[part].sum() <= budget for parts in split for part in parts):
            break
    return [sorted(parts, key=lambda part: -costs[part].sum()) for parts in split]
