"""Numbers as a person reads them: counts, shares, bytes, durations."""

from __future__ import annotations

import datetime


def count(number: float) -> str:
    """A whole number with separators: 1,234,567."""
    return f"{round(number):,}"


def share(value: float) -> str:
    """A share in percent; never 0 or 100 % for one that is neither."""
    percent = 100 * value
    if 0 < value < 1:
        percent = min(max(percent, 0.1), 99.9)
    return f"{percent:.1f} %".replace(".0 %", " %")


def part(number: int, whole: int) -> str:
    """A number and its share: 12 (3.4 %)."""
    return f"{count(number)} ({share(number / whole)})" if whole else count(number)


def gib(size: float) -> str:
    """Bytes in GiB."""
    value = size / 2**30
    return f"{value:.2f}" if value < 10 else f"{value:.1f}"


def duration(seconds: float) -> str:
    """Hours and minutes, or minutes and seconds."""
    return str(datetime.timedelta(seconds=round(seconds)))


def plural(number: int, noun: str) -> str:
    """A number with its noun: 1 row, 2 rows."""
    return f"{count(number)} {noun}{'' if number == 1 else 's'}"
