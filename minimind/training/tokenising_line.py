"""Progress of tokenising on the console, and for the watch that ends runs that are stuck.

load_table (data/table_cache.py) -> TokenisingLine -> Console.show: rewritten in a terminal, else a line now and then
"""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable

from minimind.data.table_build import Tokenised, TokenisingListener
from minimind.training.console import Console


class TokenisingLine(TokenisingListener):
    """Shows rows, rate and remaining time.

    Args:
        on_progress: called whenever something was done, also where nothing is shown.
        clock: seconds.
    """

    def __init__(
        self, console: Console, on_progress: Callable[[], object], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._console, self._on_progress, self._clock = console, on_progress, clock
        self._started = 0.0
        self._first: Tokenised | None = None
        self._last: Tokenised | None = None

    def on_work(self) -> None:
        self._on_progress()

    def on_message(self, text: str) -> None:
        self._console.say(f"  {text}")

    def on_rows(self, done: Tokenised) -> None:
        self._on_progress()
        if self._first is None:
            self._first, self._started = done, self._clock()
        self._last = done
        share = done.bytes_read / max(1, done.bytes_total)
        rate = (done.rows - self._first.rows) / max(1e-9, self._clock() - self._started)
        parts = [f"tokenising {done.source}: {done.rows:,} rows"]
        if rate and share:
            # What is read of the files tells how many rows there will be.
            left = datetime.timedelta(seconds=round(done.rows * (1 / min(share, 1) - 1) / rate))
            parts += [f"{share:.0%}", f"{rate:,.0f} rows/s", f"{left} left"]
        self._console.show("  ".join(parts), share)

    def on_end(self) -> None:
        if self._first is not None and self._last is not None:
            rows, seconds = self._last.rows - self._first.rows, round(self._clock() - self._started)
            self._console.end_show(
                f"tokenised {rows:,} rows of {self._last.source} in {datetime.timedelta(seconds=seconds)}"
            )
        self._first = self._last = None
