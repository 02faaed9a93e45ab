"""What packing saves: the tokens of the run's own micro-batches, packed and padded.

PairSampler, lengths of the selected pairs -> measure_packing -> Packing
"""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from minimind.data.sampler import PairSampler

# Global steps whose micro-batches are counted; the order of the pairs is random, so more change little.
_STEPS = 200


@dataclasses.dataclass(frozen=True, kw_only=True)
class Packing:
    """Tokens of micro-batches, as means over those of some global steps, of all ranks.

    Attributes:
        steps, micro_batches: that were counted.
        packed: tokens of a micro-batch as it is trained on: no padding, a shared prefix once.
        unpadded: the same with each prefix twice, as two rows of each pair have it.
        padded: rows padded to the longest one of the micro-batch.
        padded_to_limit: rows padded to --max_seq_len, as MiniMind does.
        largest: tokens of the largest packed micro-batch that was counted.
    """

    steps: int
    micro_batches: int
    packed: float
    unpadded: float
    padded: float
    padded_to_limit: float
    largest: int

    @property
    def saved_by_prefixes(self) -> float:
        """Share of the padded tokens that are shared prefixes."""
        return (self.unpadded - self.packed) / self.padded

    @property
    def saved_by_no_padding(self) -> float:
        """Share of the padded tokens that are padding."""
        return (self.padded - self.unpadded) / self.padded


def measure_packing(
    sampler: PairSampler, total_steps: int, inputs: NDArray[np.int64], packed: NDArray[np.int64], limit: int
) -> Packing:
    """Count the tokens of micro-batches.

    Args:
        sampler: of the run.
        total_steps: global steps of the run; at least one.
        inputs: (pairs, 2) tokens of both rows of each pair that the model reads; of rows that stand alone (rows, 1).
        packed: (pairs,) tokens of each pair in a pack.
        limit: --max_seq_len.
    """
    steps = np.unique(np.linspace(1, total_steps, min(_STEPS, total_steps)).astype(int)).tolist()
    sums = []
    for step in steps:
        for rank in range(sampler.world_size):
            for batch in sampler.micro_batches(step, rank):
                lengths = inputs[batch]
                rows = lengths.size
                # A row's last token is no input.
                sums.append((packed[batch].sum(), lengths.sum(), rows * lengths.max(), rows * (limit - 1)))
    totals = np.array(sums)
    means = totals.mean(0)
    return Packing(
        steps=len(steps),
        micro_batches=len(sums),
        packed=float(means[0]),
        unpadded=float(means[1]),
        padded=float(means[2]),
        padded_to_limit=float(means[3]),
        largest=int(totals[:, 0].max()),
    )
