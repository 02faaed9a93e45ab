"""The line of tokenising: rows, share, rate and remaining time; everything counts as progress for the watch."""

from __future__ import annotations

import pytest

from minimind.data.table_build import Tokenised
from minimind.training.tokenising_line import TokenisingLine


class Shown:
    """A console that keeps what it is given."""

    def __init__(self):
        self.lines = []

    def show(self, line, share):
        self.lines.append((line, share))

    def say(self, line):
        self.lines.append(line)

    end_show = say


def done(rows: int, read: int) -> Tokenised:
    return Tokenised(source="a.jsonl", rows=rows, bytes_read=read, bytes_total=1000)


@pytest.fixture
def line():
    now, console, ticks = [0.0], Shown(), []
    made = TokenisingLine(console, lambda: ticks.append(1), lambda: now[0])
    made.now, made.console, made.ticks = now, console, ticks
    return made


def test_rows_rate_and_remaining_time(line):
    line.on_rows(done(0, 0))
    line.now[0] = 10.0
    line.on_rows(done(2500, 250))
    # A quarter took 10 s.
    assert line.console.lines == [
        ("tokenising a.jsonl: 0 rows", 0.0),
        ("tokenising a.jsonl: 2,500 rows  25%  250 rows/s  0:00:30 left", 0.25),
    ]


def test_rows_of_an_earlier_run_are_no_part_of_the_rate(line):
    line.on_rows(done(2000, 0))
    line.now[0] = 5.0
    line.on_rows(done(2500, 250))
    assert line.console.lines[-1] == ("tokenising a.jsonl: 2,500 rows  25%  100 rows/s  0:01:15 left", 0.25)
    line.on_end()
    assert line.console.lines[-1] == "tokenised 500 rows of a.jsonl in 0:00:05"


def test_a_second_source_begins_anew(line):
    line.on_rows(done(1000, 1000))
    line.on_end()
    line.now[0] = 100.0
    line.on_rows(done(0, 0))
    line.now[0] = 101.0
    line.on_rows(done(10, 500))
    assert line.console.lines[-1][0].endswith("10 rows/s  0:00:01 left")


def test_all_but_messages_are_progress(line):
    line.on_work()
    line.on_rows(done(0, 0))
    line.on_message("waiting")
    assert len(line.ticks) == 2
    assert line.console.lines[-1] == "  waiting"
