"""The order of streamed rows: shares of words, epochs and windows, from the lists of shards alone."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from minimind.data.streaming.order import StreamOrder, Word
from minimind.data.streaming.shards import Shard
from minimind.errors import DataError


def shards(*pairs):
    """Shards of some numbers of rows, with ten tokens a row, and 100 bytes each."""
    return [
        Shard(
            number=number, source=0, first=0, rows=rows, pairs=rows, left_out=0, tokens=10 * rows, bytes=100, last=rows
        )
        for number, rows in enumerate(pairs)
    ]


def order_of(*words, weights=(1, 1), window=1000, seed=None):
    """An order, and a list of what it has asked for."""
    asked = []

    def shard_of(word, number):
        asked.append((word, number))
        return words[word][number] if number < len(words[word]) else None

    named = [
        Word(name=f"word {place}", bytes=100 * len(found), weight=Fraction(weight))
        for place, (found, weight) in enumerate(zip(words, weights, strict=False))
    ]
    return StreamOrder(named, shard_of, window_tokens=window, seed=seed), asked


def parts(window):
    return [(part.word, part.shard.number) for part in window.parts]


def test_a_window_ends_with_its_tokens_and_with_the_epoch():
    order, _ = order_of(shards(3, 4, 5, 6, 2), window=70)
    assert [parts(order.window(number)) for number in range(4)] == [
        [(0, 0), (0, 1)],
        [(0, 2), (0, 3)],
        [(0, 4)],
        [(0, 0), (0, 1)],
    ]
    windows = [order.window(number) for number in range(4)]
    assert [(window.start, window.end, window.tokens) for window in windows] == [
        (0, 7, 70), (7, 18, 110), (18, 20, 20), (20, 27, 70)
    ]  # fmt: skip
    assert [window.epochs[1] for window in windows] == [Fraction(2, 5), Fraction(4, 5), 1, Fraction(7, 5)]
    # A row's place and shard, and the share of an epoch that is over in the middle of a window.
    assert [order.window_at(row).number for row in (0, 6, 7, 19, 20)] == [0, 0, 1, 2, 3]
    assert (order.part_of(6).shard.number, order.part_of(12).shard.number) == (1, 3)
    assert order.epoch_at(20) == 1
    assert order.epoch_at(19) == pytest.approx(0.9)


def test_no_later_shard_than_the_next_one_is_asked_for():
    """Training may begin when the first window is there."""
    order, asked = order_of(shards(3, 4, 5, 6, 2), window=70)
    order.rows(0, 7)
    assert max(asked) == (0, 2)


def test_words_keep_their_shares():
    """Word 1 is taken twice in each epoch of word 0, a half word 0 once in two epochs."""
    order, _ = order_of(shards(1, 1, 1, 1), shards(1, 1), weights=(1, 2), window=10**6)
    first = order.window(0)
    assert sorted(parts(first)) == sorted([(0, 0), (0, 1), (0, 2), (0, 3), *[(1, 0), (1, 1)] * 2])
    # Interleaved: neither word comes as a block.
    assert [word for word, _ in parts(first)] == [0, 1, 0, 1, 0, 1, 0, 1]
    assert first.epochs == (0, 1)
    order, _ = order_of(shards(1, 1, 1, 1), shards(1, 1), weights=(Fraction(1, 2), 1), window=10**6)
    assert [[part for part in parts(order.window(number)) if part[0] == 0] for number in (0, 1)] == [
        [(0, 0), (0, 1)],
        [(0, 2), (0, 3)],
    ]


def test_rows_are_shuffled_in_their_window_and_shards_from_the_second_pass_on():
    found = shards(*[5] * 8)
    order, _ = order_of(found, window=100, seed=3)
    again, _ = order_of(found, window=100, seed=3)
    other, _ = order_of(found, window=100, seed=4)
    taken = order.rows(0, 80)
    for window in range(8):
        inside = taken[10 * window : 10 * window + 10]
        assert sorted(inside) == list(range(10 * window, 10 * window + 10))
        assert list(inside) != sorted(inside)
    assert (taken == again.rows(0, 80)).all()
    assert (taken != other.rows(0, 80)).any()
    # A batch that lies across two windows.
    assert (order.rows(5, 15) == taken[5:15]).all()
    passes = [
        [part.shard.number for n in windows for part in order.window(n).parts] for windows in (range(4), range(4, 8))
    ]
    assert passes[0] == list(range(8))
    assert sorted(passes[1]) == passes[0] != passes[1]
    plain, _ = order_of(found, window=100)
    assert plain.rows(0, 80).tolist() == list(range(80))
    assert [part.shard.number for part in plain.window(4).parts] == [0, 1]


def test_shards_without_a_row_are_passed_over():
    order, _ = order_of(shards(0, 3, 0, 0, 2, 0), window=10**6)
    assert parts(order.window(0)) == [(0, 1), (0, 4)]
    assert parts(order.window(1)) == [(0, 1), (0, 4)]
    assert order.rows(0, 7).tolist() == np.arange(7).tolist()


def test_a_word_without_a_row_is_refused():
    order, _ = order_of(shards(3), shards(0, 0))
    with pytest.raises(DataError, match="word 1: none of its rows can be trained on"):
        order.window(0)
