"""What becomes known of streamed data during a run is said once."""

from __future__ import annotations

from types import SimpleNamespace

from minimind.training.events import End, Log, Start
from minimind.training.listeners.stream_report import StreamReport


def test_wrong_rows_and_waiting_are_told():
    said = []
    order = SimpleNamespace(read=100, left_out=0)
    rows = SimpleNamespace(order=order, example="line 3: no text", reader=SimpleNamespace(waited=60.0))
    report = StreamReport(rows=rows, console=SimpleNamespace(say=said.append))
    report.on_start(Start(step=0, total_steps=9))
    report.on_log(Log(step=1, metrics={}))
    assert said == []
    order.read, order.left_out = 200, 4
    for step in (2, 3):
        report.on_log(Log(step=step, metrics={}))
    assert said == [
        "  4 of 200 rows so far are left out (--on_bad_row, --on_long_row), the first wrong one: line 3: no text"
    ]
    rows.reader.waited = 72.0
    report.on_end(End(step=9, finished=True))
    assert "training waited 12 s for tokenised data" in said[1]


def test_a_short_wait_is_not_told():
    said = []
    rows = SimpleNamespace(example="", reader=SimpleNamespace(waited=0.0))
    report = StreamReport(rows=rows, console=SimpleNamespace(say=said.append))
    report.on_start(Start(step=0, total_steps=9))
    rows.reader.waited = 1.0
    report.on_end(End(step=9, finished=True))
    assert said == []
