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
        self._told = self._rows.wrong

    def on_log(self, event: Log) -> None:
        rows = self._rows
        if rows.wrong > self._told:
            self._told = rows.wrong
            self._console.say(
                f"  {rows.wrong:,} of {rows.read:,} rows so far are wrong and left out (--on_bad_row skip): "
                f"{rows.example}"
            )

    def on_end(self, event: End) -> None:
        seconds = self._rows.reader.waited - self._waited
        if seconds >= _LEAST_SECONDS:
            self._console.say(
                f"  training waited {seconds:,.0f} s for tokenised data: more processes (--num_workers) or a first run "
                "over the same data, whose shards are kept, avoid it"
            )
