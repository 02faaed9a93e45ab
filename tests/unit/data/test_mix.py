"""Which pairs an epoch takes of sources with weights."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction

import pytest

from minimind.data.mix import Mix


def mix_of(*parts: tuple[int, str]) -> Mix:
    return Mix(sizes=tuple(size for size, _ in parts), weights=tuple(Fraction(weight) for _, weight in parts))


def test_plain_pairs_are_taken_in_their_order():
    for seed in (None, 3):
        assert Mix.plain(5).draws(2, seed).tolist() == [0, 1, 2, 3, 4]
    assert mix_of((2, "1"), (3, "2")).draws(0, 3).tolist() == [0, 1, 2, 3, 4, 2, 3, 4]


def test_half_of_a_source_and_the_other_half_by_hand():
    """5 pairs at 0.5 are 2.5 an epoch: 2, then 3, and in every two epochs each pair once."""
    mix = mix_of((5, "0.5"), (1, "1"))
    assert [mix.draws(epoch, None).tolist() for epoch in range(4)] == [[0, 1, 5], [2, 3, 4, 5]] * 2
    assert [mix.start(epoch) for epoch in range(5)] == [0, 3, 7, 10, 14]
    drawn = [mix.draws(epoch, 1).tolist() for epoch in range(4)]
    assert sorted(drawn[0] + drawn[1]) == sorted(drawn[2] + drawn[3]) == [0, 1, 2, 3, 4, 5, 5]
    assert drawn[:2] != [[0, 1, 5], [2, 3, 4, 5]]
    assert drawn[:2] != drawn[2:]


WEIGHTS = ["1", "2", "0.5", "0.1", "1.5", "0.37", "2.25", ".001", "100"]


@pytest.mark.parametrize("seed", [None, 7])
@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("size", [1, 7, 40])
def test_a_source_is_taken_evenly(size, weight, seed):
    """After any number of epochs each pair was taken equally often, or once less."""
    mix = mix_of((3, "1"), (size, weight))
    taken: Counter[int] = Counter()
    total = 0
    for epoch in range(8):
        assert mix.start(epoch) == total
        draws = mix.draws(epoch, seed).tolist()
        assert draws == mix.draws(epoch, seed).tolist()
        total += len(draws)
        taken.update(index for index in draws if index >= 3)
        counts = [taken[3 + index] for index in range(size)]
        assert max(counts) - min(counts) <= 1
        assert sum(counts) == int(Fraction(weight) * size * (epoch + 1))


@pytest.mark.parametrize("parts", [[(3, ".001"), (2, "0.3")], [(5, "0.5"), (7, "1.1"), (1, "3")], [(4, "1")]])
def test_the_epoch_of_each_position(parts):
    mix = mix_of(*parts)
    epochs = [epoch for epoch in range(2000) for _ in range(mix.start(epoch + 1) - mix.start(epoch))]
    assert [mix.epoch_at(position) for position in range(len(epochs))] == epochs


def test_pairs_per_epoch_are_exact():
    assert mix_of((10, "0.1"), (3, "0.7")).pairs_per_epoch == Fraction(31, 10)
