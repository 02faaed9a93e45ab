"""Says what only becomes known of streamed data during a run: wrong rows, and time that tokenising cost.

StreamedRows -> (Log) rows that are left out so far -> (End) seconds in which training waited -> console
"""

from __future__ import annotations

from minimind.data.streaming.rows import StreamedRows
from minimind.training.console import Console
from minimind.training.events import End, Listener, Log, Start

# Shorter waits are not worth a line.
_LEAST_SECONDS = 5.0


class StreamReport(Listener):
    """Reports on the shards that this process has opened.

    Args:
        rows: of the run.
    """

    name = "stream_report"

    def __init__(self, *, rows: StreamedRows, console: Console) -> None:
        self._rows, self._console = rows, console
        self._told = 0
        self._waited = 0.0

    def on_start(self, event: Start) -> None:
        self._waited = self._rows.reader.waited

    def on_log(self, event: Log) -> None:
        order = self._rows.order
        if order.left_out > self._told:
            self._told = order.left_out
            number = f"{order.left_out:,} of {order.read:,} rows so far"
            example = f", the first wrong one: {self._rows.example}" if self._rows.example else ""
            self._console.say(f"  {number} are left out (--on_bad_row, --on_long_row){example}")

    def on_end(self, event: End) -> None:
        seconds = self._rows.reader.waited - self._waited
        if seconds >= _LEAST_SECONDS:
            self._console.say(
                f"  training waited {seconds:,.0f} s for tokenised data: more processes (--num_workers) or a first run "
                "over the same data, whose shards are kept, avoid it"
            )
