"""What follows from what the ranks say of themselves: who is behind, who is quiet, who is gone."""

from __future__ import annotations

import sys

from minimind.ranks.status import Ledger, Place, behind, locate, name_ranks


def place(moves=1, *, ticks=0, beat=0, seconds=0.0, waits=False, phase="backward", step=3) -> Place:
    line = "engine/policy.py:1"
    return Place(
        beat=beat, moves=moves, ticks=ticks, phase=phase, step=step, seconds=seconds, line=line, waits=waits
    )  # fmt: skip


def test_behind_are_those_with_the_fewest_phases():
    assert behind({0: place(8, waits=True), 1: place(7), 2: place(8, waits=True)}) == [1]


def test_among_equals_behind_are_those_that_do_not_wait():
    assert behind({0: place(8, waits=True), 1: place(8), 2: place(8, waits=True)}) == [1]
    assert behind({0: place(8, waits=True), 1: place(8, waits=True)}) == [0, 1]


def test_quiet_is_counted_from_the_last_move_of_any_rank():
    ledger = Ledger()
    ledger.note({0: place(4, seconds=6.0), 1: place(4, seconds=2.0)}, now=100.0)
    assert ledger.quiet(100.0) == 2.0
    # A tick is a move; a heartbeat is none.
    ledger.note({0: place(4, beat=1), 1: place(4, ticks=1)}, now=105.0)
    assert ledger.quiet(107.0) == 2.0
    ledger.note({0: place(4, beat=9), 1: place(4, ticks=1, beat=9)}, now=125.0)
    assert ledger.quiet(125.0) == 20.0


def test_silent_are_those_whose_heart_does_not_beat():
    ledger = Ledger()
    ledger.note({0: place(beat=1), 1: place(beat=1)}, now=0.0)
    ledger.note({0: place(beat=2), 1: place(beat=1)}, now=20.0)
    assert ledger.silent(25.0, 20.0) == [1]
    assert ledger.silent(15.0, 20.0) == []


def test_place_survives_the_store_and_reads_well():
    one = place(5, phase="policy forward", step=12)
    assert Place.from_json(one.to_json().encode()) == one
    assert str(one) == "policy forward of step 12, at engine/policy.py:1"
    assert str(place(phase="loading", step=0)) == "loading, at engine/policy.py:1"


def test_locate_finds_our_line_and_whether_it_waits():
    def meet():
        return locate(sys._getframe())

    def work():
        return locate(sys._getframe())

    assert meet()[1]
    line, waits = work()
    assert not waits
    assert line.startswith("test_status.py:")


def test_names_of_ranks():
    assert name_ranks([3]) == "rank 3"
    assert name_ranks([2, 0, 1, 5]) == "ranks 0-2, 5"
