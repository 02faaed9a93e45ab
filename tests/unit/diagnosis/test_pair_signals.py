"""Signals of single held-out pairs, on values that can be checked by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from minimind.diagnosis.pair_signals import (
    CORRELATION,
    DISPLACED,
    EQUAL_LENGTH_ACCURACY,
    EQUAL_LENGTHS,
    SATURATED,
    HeldOut,
    signals,
    still_wrong,
)


def held_out(chosen, rejected, chosen_tokens=(10,), rejected_tokens=(10,)):
    columns = (np.array(one, np.float64) for one in (chosen, rejected, chosen_tokens, rejected_tokens))
    return HeldOut.of_columns(np.stack(np.broadcast_arrays(*columns)))


def test_displaced_pairs_have_a_chosen_reward_below_0():
    assert signals(held_out([-0.1, -2, 0, 3], [-5, -5, -5, -5]))[DISPLACED] == 0.5


def test_saturated_pairs_have_lost_all_but_a_hundredth_of_their_gradient():
    # sigmoid(-m) is 1/2 at 0, and a hundredth of it at ln 199.
    margins = np.array([0, math.log(199) - 1e-6, math.log(199) + 1e-6, 1e6, -1e6])
    assert signals(held_out(margins, 0 * margins))[SATURATED] == 2 / 5


def test_accuracy_where_both_answers_are_about_equally_long():
    found = signals(held_out([1, -1, 0, 9], [0, 0, 0, 0], [10, 100, 9, 20], [10, 91, 10, 10]))
    # 10 and 10, 100 and 91, 9 and 10: right, wrong and a tie; 20 and 10 do not count.
    assert (found[EQUAL_LENGTH_ACCURACY], found[EQUAL_LENGTHS]) == (0.5, 3)


def test_correlation_with_the_difference_of_lengths():
    up = signals(held_out([1, 2, 3], [0, 0, 0], [11, 12, 13], [10]))
    assert up[CORRELATION] == pytest.approx(1)
    down = signals(held_out([3, 2, 1], [0, 0, 0], [11, 12, 13], [10]))
    assert down[CORRELATION] == pytest.approx(-1)


def test_what_does_not_exist_is_left_out():
    found = signals(held_out([0, 0], [0, 0], [30, 40], [10, 20]))
    assert CORRELATION not in found  # all margins are equal
    assert EQUAL_LENGTH_ACCURACY not in found
    assert found[EQUAL_LENGTHS] == 0


def test_pairs_that_get_more_wrong_are_counted():
    first = still_wrong(np.array([-1.0, -1.0, 1.0, -1.0]), {})
    second = still_wrong(np.array([-2.0, -0.5, -1.0, 0.5]), first)
    third = still_wrong(np.array([-3.0, -0.6, -2.0, -1.0]), second)
    assert third == {0: (3, -3.0), 1: (2, -0.6), 2: (2, -2.0), 3: (1, -1.0)}
