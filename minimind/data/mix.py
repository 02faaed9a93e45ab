"""How often an epoch takes the pairs of each source.

    number and weight of each source's pairs -> Mix -> which pairs an epoch takes, in the order of the sources

A source of n pairs with weight w is an endless sequence of its pairs, again and again; each epoch takes the next w n of
them. So a weight of 2 takes each pair twice in an epoch, and a weight of 0.5 takes each pair once in two epochs. Where
w n is no whole number, epochs differ by one pair.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mix:
    """Numbers of pairs and weights of the sources.

    Attributes:
        sizes: number of pairs of each source.
        weights: how often an epoch takes each pair of the source.
    """

    sizes: tuple[int, ...]
    weights: tuple[Fraction, ...]

    @classmethod
    def plain(cls, size: int) -> Mix:
        """One source of which an epoch takes each pair once."""
        return cls(sizes=(size,), weights=(Fraction(1),))

    @functools.cached_property
    def pairs_per_epoch(self) -> Fraction:
        """Mean number of pairs that an epoch takes."""
        return sum((self._rate(part) for part in range(len(self.sizes))), Fraction())

    def start(self, epoch: int) -> int:
        """Number of pairs taken before an epoch, counted from 0."""
        return sum(self._taken(part, epoch) for part in range(len(self.sizes)))

    def epoch_at(self, position: int) -> int:
        """The epoch, from 0, that takes the pair at a position counted over all epochs."""
        # Rounding down makes an epoch begin up to one pair a source earlier than the mean says.
        epoch = int((position + len(self.sizes)) / self.pairs_per_epoch)
        while self.start(epoch) > position:
            epoch -= 1
        return epoch

    def draws(self, epoch: int, seed: int | None) -> NDArray[np.int64]:
        """Indices of the pairs that an epoch takes, source after source; an index counts over all sources.

        Args:
            seed: of the order in which a source's pairs are taken, where an epoch takes a part of them; None keeps the
                order of the source.
        """
        parts = [part for index in range(len(self.sizes)) for part in self._draws_of(index, epoch, seed)]
        return np.concatenate(parts) if parts else np.empty(0, np.int64)

    def _rate(self, part: int) -> Fraction:
        return self.weights[part] * self.sizes[part]

    def _taken(self, part: int, epoch: int) -> int:
        """Pairs of a source that are taken before an epoch."""
        return math.floor(epoch * self._rate(part))

    def _draws_of(self, part: int, epoch: int, seed: int | None) -> Iterator[NDArray[np.int64]]:
        size, first = self.sizes[part], sum(self.sizes[:part])
        position, end = self._taken(part, epoch), self._taken(part, epoch + 1)
        while position < end:
            turn, begin = divmod(position, size)
            stop = min(size, begin + end - position)
            order = np.arange(size)
            # Taken as a whole, a source needs no order of its own: the epoch is shuffled later.
            if seed is not None and stop - begin < size:
                order = np.random.default_rng((seed, part, turn)).permutation(size)
            yield first + order[begin:stop]
            position += stop - begin
