"""DeepSpeed's monitor (TensorBoard and others), whose failures cost events and not the run.

    engine.step, MetricsFile -> RunMonitor.write_events    -> each of DeepSpeed's monitors ┐
    Board                    -> RunMonitor.write_summaries -> TensorBoard alone            ┴> news

TensorBoard's own writer has a thread, which a full disk ends for good. Here the caller appends its records itself.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import io
import os
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from minimind.durable import append_whole
from minimind.engine.summaries import FINAL, tag_of

# What to do, by the number of an OSError.
_REMEDIES = {
    errno.ENOSPC: "free disk space",
    errno.EDQUOT: "free disk space",
    errno.ENOENT: "put the folder back",
    errno.EACCES: "make it writable",
    errno.EROFS: "make it writable",
}
# Prefix of the tags of events that an engine writes itself, and the one of every step: the rate of the next step.
_ENGINE, _NEXT_RATE = "Train/Samples/", "Train/Samples/lr"
# TensorBoard's group of the engine's other events.
_ENGINE_GROUP = "deepspeed/"
# So many writes in a row end an outage. On a full disk a short record may fit where the next one does not.
_SUCCESSES = 10


class Outage:
    """Says once when something cannot be written any more, and once when it can again.

    Args:
        name: what is written.
        errors: exceptions that begin an outage; others are raised.
    """

    def __init__(self, name: str, errors: type[Exception] = OSError) -> None:
        self._name, self._errors = name, errors
        self._successes_to_end = 0

    def attempt(self, write: Callable[[], object]) -> list[str]:
        """Write; returns a message for the user if this begins or ends an outage, else nothing."""
        before = self._successes_to_end
        try:
            write()
        except self._errors as error:
            self._successes_to_end = _SUCCESSES
            remedy = _REMEDIES.get(getattr(error, "errno", None) or 0)
            advice = f"; {remedy}, and it is written again" if remedy else ""
            return [] if before else [f"NOT LOGGED: {self._name}: {error}. Training continues{advice}"]
        self._successes_to_end = max(0, before - 1)
        return [f"{self._name} is written again"] if before == 1 else []


class RunMonitor:
    """Stands in for an engine's monitor; a part of it that fails does not stop the others.

    Args:
        inner: DeepSpeed's monitor; only rank 0's has parts.
        engine_step: the global step that the engine has done last.

    Attributes:
        inner: the same.
        enabled: whether any rank writes events.
    """

    def __init__(self, inner: Any, engine_step: Callable[[], int]) -> None:
        self.inner, self.enabled = inner, inner.enabled
        # Services count steps themselves: what has a smaller number than the last event is dropped.
        self._parts = [
            _Part(part, name, wants)
            for name, part, wants in (
                ("wandb", inner.wandb_monitor, _has_step),
                ("csv_monitor", inner.csv_monitor, _is_any),
                ("comet", inner.comet_monitor, _has_step),
            )
            if part is not None
        ]
        self._board: _Part | None = None
        if inner.tb_monitor is not None:
            writer = inner.tb_monitor.summary_writer
            with contextlib.suppress(OSError):
                # Its thread ends here; from now on the same file is written by the caller alone.
                writer.close()
            self._board = _Part(_TensorBoard(Path(writer.log_dir), engine_step), "TensorBoard", _is_for_board)
            self._parts.append(self._board)
        self._added: list[Any] = []
        self._news: list[str] = []

    def add(self, name: str, part: Any) -> None:
        """Add a part that DeepSpeed does not have, with `write_events` and `close`."""
        self._parts.append(_Part(part, name, _has_step))
        self._added.append(part)
        # DeepSpeed asks this flag before it makes events at all.
        self.enabled = True

    def close(self) -> None:
        """Wait until added parts have uploaded their events."""
        for part in self._added:
            part.close()

    def write_events(self, events: Sequence[tuple[str, Any, int]]) -> None:
        """Write events (tag, value, place on the x-axis); a failure becomes news."""
        for part in self._parts:
            # What is not written at all is no success either.
            if wanted := [event for event in events if part.wants(event[0])]:
                self._news += part.attempt("write_events", wanted)

    def write_summaries(self, summaries: Sequence[Any], step: int, *, folder: str = "") -> None:
        """Write summaries of any kind (engine/summaries.py) to TensorBoard, if it is on; a failure becomes news.

        Args:
            folder: "", or `FINAL` for those by which runs are compared.
        """
        if self._board is not None:
            self._news += self._board.attempt("write_summaries", summaries, step, folder)

    def restart(self, step: int) -> None:
        """Tell TensorBoard that a process begins at a step: what an earlier one wrote of later steps is dropped."""
        if self._board is not None:
            self._news += self._board.attempt("restart", step)

    def news(self) -> list[str]:
        """Messages for the user since the last call."""
        news, self._news = self._news, []
        return news


class _Part:
    """A monitor, with the events that it takes and what is said when it fails.

    Args:
        inner: it has `write_events`.
        name: for messages.
        wants: whether it takes the events of a tag.
    """

    def __init__(self, inner: Any, name: str, wants: Callable[[str], bool]) -> None:
        self._inner, self.wants = inner, wants
        # Services raise exceptions of their own.
        self._outage = Outage(name, Exception)

    def attempt(self, method: str, *arguments: Any) -> list[str]:
        """Call a method; returns messages for the user."""
        return self._outage.attempt(functools.partial(getattr(self._inner, method), *arguments))


def _is_any(tag: str) -> bool:
    return True


def _has_step(tag: str) -> bool:
    """Not the engine's own events, whose place on the x-axis is a number of samples, not a global step."""
    return not tag.startswith(_ENGINE)


def _is_for_board(tag: str) -> bool:
    """Not the rate of the next step, which the engine writes beside ours."""
    return tag != _NEXT_RATE


class _TensorBoard:
    """In place of DeepSpeed's part for TensorBoard: scalars in groups, and summaries of other kinds.

    What the tab HPARAMS compares is a run of its own, in the folder `FINAL` of the run: of a run with settings that tab
    lists every scalar.

    Args:
        folder: of the run.
        engine_step: the global step that the engine has done last.
    """

    def __init__(self, folder: Path, engine_step: Callable[[], int]) -> None:
        self._files = {"": EventFile(folder, goes_on=True), FINAL: EventFile(folder / FINAL)}
        self._engine_step = engine_step

    def write_events(self, events: Sequence[tuple[str, Any, int]]) -> None:
        for name, value, step in events:
            if name.startswith(_ENGINE):
                # The engine counts samples. Among global steps a resumed run takes back those that it repeats alone.
                name, step = _ENGINE_GROUP + name.removeprefix(_ENGINE), self._engine_step()
            self._files[""].add_scalar(tag_of(name), value, step)
        self._files[""].flush()

    def write_summaries(self, summaries: Sequence[Any], step: int, folder: str) -> None:
        self._files[folder].add_summaries(summaries, step)

    def restart(self, step: int) -> None:
        for file in self._files.values():
            file.add_restart(step)
            file.flush()


class EventFile:
    """TensorBoard's event file of this process, in place of its own writer: records are written whole or not at all.

    Args:
        folder: where it is.
        goes_on: the file that DeepSpeed has begun there in this process is continued. Without one a file with this
            process's number is that of an earlier one, as in a container, and its end may be damaged: readers would
            see nothing of what follows.
    """

    def __init__(self, folder: Path, *, goes_on: bool = False) -> None:
        begun = sorted(folder.glob(f"events.out.tfevents.*.{os.getpid()}.*"))
        # Readers take files in the order of their names; two in a second differ in the last number.
        name = f"events.out.tfevents.{time.time():010.0f}.{socket.gethostname()}.{os.getpid()}.{len(begun)}"
        self._path = begun[-1] if begun and goes_on else folder / name
        self._records = io.BytesIO()

    def add_scalar(self, tag: str, value: Any, step: int) -> None:
        """Add a record; `flush` writes it."""
        # Imported only here: slow, and not needed without TensorBoard.
        from torch.utils.tensorboard.summary import scalar

        self.add_summary(scalar(tag, value), step)

    def add_summary(self, summary: Any, step: int) -> None:
        """Add a record of any kind (a Summary of tensorboard's protocol); `flush` writes it."""
        self._add(step=int(step), summary=summary)

    def add_summaries(self, summaries: Sequence[Any], step: int) -> None:
        """Add records and write them."""
        for summary in summaries:
            self.add_summary(summary, step)
        self.flush()

    def add_restart(self, step: int) -> None:
        """Add a record with which readers drop all that other files of this folder have of this step and later ones.

        TensorBoard takes the first one of a folder as its beginning and drops nothing, so every process adds one.
        """
        from tensorboard.compat.proto.event_pb2 import SessionLog

        self._add(step=int(step), session_log=SessionLog(status=SessionLog.START))

    def flush(self) -> None:
        """Append the records to the file. Records that cannot be written are lost.

        Raises:
            OSError: the file could not be written; it has complete records only.
        """
        records, self._records = self._records.getvalue(), io.BytesIO()
        if not self._path.exists():
            # A new file, after its folder was removed, begins with a version. A missing run folder is not made again:
            # the user may be about to put it back.
            self._path.parent.mkdir(exist_ok=True)
            self._add(file_version="brain.Event:2")
            records = self._records.getvalue() + records
            self._records = io.BytesIO()
        append_whole(self._path, records)

    def _add(self, **fields: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter

        RecordWriter(self._records).write(Event(wall_time=time.time(), **fields).SerializeToString())
