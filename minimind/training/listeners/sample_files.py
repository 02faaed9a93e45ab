"""Writes samples: samples.jsonl in the run's folder, a table in TensorBoard, and a few on the console at the end.

Sampled -> one JSON line for each answer, one Markdown table;  End -> before and after of a few prompts
"""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from pathlib import Path

from minimind.durable import append_whole
from minimind.engine import summaries
from minimind.engine.monitor import Outage, RunMonitor
from minimind.training.console import Console
from minimind.training.events import End, Listener, Sampled
from minimind.training.samples import SAMPLES_FILE, Sample

# Tag of the table in TensorBoard, its rows, and characters of a cell.
_TAG = "samples"
_MOST_ROWS, _MOST_CHARACTERS = 32, 600
# Prompts on the console at the end, and characters of each text there.
_SHOWN, _SHOWN_CHARACTERS = 4, 200


class SampleFiles(Listener):
    """Writes samples; rank 0 alone has this listener.

    Args:
        folder: the run's folder.
        monitor: the engine's monitor.
        on_board: TensorBoard is on.
        console: shows the last samples, and says when the file could not be written.
    """

    name = "sample_files"

    def __init__(self, *, folder: Path, monitor: RunMonitor, on_board: bool, console: Console) -> None:
        self._path, self._monitor, self._on_board, self._console = folder / SAMPLES_FILE, monitor, on_board, console
        self._outage = Outage(SAMPLES_FILE)
        self._latest: Sequence[Sample] = ()

    def on_sampled(self, event: Sampled) -> None:
        self._latest = event.samples
        lines = (json.dumps(sample.entry(event.step), ensure_ascii=False) for sample in event.samples)
        data = "".join(f"{line}\n" for line in lines).encode(errors="replace")
        for message in self._outage.attempt(lambda: append_whole(self._path, data)):
            self._console.say(message)
        if self._on_board:
            self._monitor.write_summaries([summaries.text(_TAG, markdown_table(event.samples))], event.step)
        for message in self._monitor.news():
            self._console.say(message)

    def on_end(self, event: End) -> None:
        if not event.finished or not self._latest:
            return
        self._console.say("\nAnswers, before and after training:")
        for sample in self._latest[:_SHOWN]:
            texts = (sample.prompt.text, sample.start or "", sample.answer)
            prompt, before, after = (_in_one_line(text, _SHOWN_CHARACTERS) for text in texts)
            self._console.say(f"\n  {prompt}\n    before  {before}\n    after   {after}")


def markdown_table(samples: Sequence[Sample]) -> str:
    """A table of samples: prompt, the data's answer, the answer before the first step, the answer now."""
    rows = []
    for sample in samples[:_MOST_ROWS]:
        now = sample.answer if sample.ended else f"{sample.answer} …"
        texts = (sample.prompt.text, sample.prompt.expected, sample.start or "", now)
        rows.append([_cell(text) for text in texts])
    return summaries.table(("prompt", "answer in the data", "before training", "now"), rows)


def _cell(text: str) -> str:
    """A text as a cell: as it is, without tags or code of its own."""
    # A file of prompts may have half of a surrogate pair, which no encoding takes.
    text = text.encode(errors="replace").decode()
    return html.escape(_shortened(text, _MOST_CHARACTERS), quote=False).replace("`", "&#96;")


def _shortened(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _in_one_line(text: str, most: int) -> str:
    return _shortened(" ".join(text.split()), most)
