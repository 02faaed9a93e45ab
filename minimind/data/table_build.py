"""Writes a table into the cache: once, by one process, which goes on where a killed one was.

    chunks -> pairs-KEY.partial-*/ (TableWriter) -> renamed to pairs-KEY/

One process holds the lock of a key, pairs-KEY.lock; others wait until the table is there, or the process has died. A
process writes only into a partial folder of its own, into which it copies the whole chunks of a dead one. So two
processes cannot damage each other's files even where locks are missing, or hold on one machine only.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from minimind.data.sources import Source
from minimind.data.table import PairTable
from minimind.data.table_files import JOURNAL, TableWriter
from minimind.data.tokens import Chunk
from minimind.durable import sync_tree
from minimind.errors import MiniMindError
from minimind.locks import held, holder, try_lock

_PARTIAL = ".partial-"
# Seconds without a write after which a partial folder goes: of this key, where its chunks are copied; of another key.
_COPIED_AGE, _OLD_AGE = 600, 7 * 86400


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tokenised:
    """How far the tokenising of a source is.

    Attributes:
        source: its name without folders.
        rows: rows that are tokenised, those of an earlier start included.
        bytes_read, bytes_total: how much of the source's files these rows are.
    """

    source: str
    rows: int
    bytes_read: int
    bytes_total: int


class TokenisingListener:
    """Is told what happens while a source is read, hashed or tokenised; this one does nothing."""

    def on_work(self) -> None:
        """A block of a file was read, or another process that this one waits for has made progress."""

    def on_rows(self, done: Tokenised) -> None:
        """Rows were tokenised; before the first ones, those of an earlier start are told."""

    def on_message(self, text: str) -> None:
        """Something that the user should know, one line."""

    def on_end(self) -> None:
        """No more rows of this source follow."""


SILENT = TokenisingListener()


def build_table(
    folder: Path,
    source: Source,
    chunks: Callable[..., Iterator[Chunk]],
    read: Callable[[], PairTable | None],
    *,
    max_length: int,
    listener: TokenisingListener,
) -> None:
    """Write the table of a source, unless another process does so meanwhile.

    Args:
        folder: of the table; folders and files beside it have its name with an ending.
        chunks: called with `skip`, the number of rows that are there already: the chunks of the others.
        read: reads the table.

    Raises:
        OSError: a file cannot be written.
        DataError: see `tokenize`.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = _lock_of(folder)
    with held(lock, _Waiting(folder, source, listener)):
        if read() is not None:
            return
        _remove_old(folder, listener)
        # Of this process alone: a lock may be missing, or hold on one machine only.
        partial = Path(tempfile.mkdtemp(prefix=f"{folder.name}{_PARTIAL}", dir=folder.parent))
        try:
            with contextlib.closing(TableWriter(partial)) as writer:
                _fill(writer, folder, partial, source, chunks, listener)
                writer.finish(max_length)
            sync_tree(partial)
            _move(partial, folder, read)
        except MiniMindError:
            # The source itself cannot be tokenised. After any other error the next start goes on with these chunks.
            _remove(_partials(folder))
            raise
        (folder / JOURNAL).unlink(missing_ok=True)
        _remove(_partials(folder))


def _fill(
    writer: TableWriter,
    folder: Path,
    partial: Path,
    source: Source,
    chunks: Callable[..., Iterator[Chunk]],
    listener: TokenisingListener,
) -> None:
    """Write all chunks: those of a dead process, then the others."""
    earlier = [other for other in _partials(folder) if other != partial]
    if earlier:
        writer.take_over(max(earlier, key=_written), listener.on_work)
        # One that is written to belongs to a process that is alive, which the lock did not show.
        _remove(other for other in earlier if _age(other) > _COPIED_AGE)
    if writer.rows:
        listener.on_message(f"{source.name}: {writer.rows:,} rows are tokenised already, by a run that ended early")
    bytes_total = source.size
    listener.on_rows(Tokenised(source=source.short_name, rows=writer.rows, bytes_read=0, bytes_total=bytes_total))
    try:
        for chunk in chunks(skip=writer.rows):
            writer.append(chunk)
            done = Tokenised(
                source=source.short_name, rows=writer.rows, bytes_read=chunk.bytes_read, bytes_total=bytes_total
            )
            listener.on_rows(done)
    finally:
        listener.on_end()


def _move(partial: Path, folder: Path, read: Callable[[], PairTable | None]) -> None:
    try:
        os.replace(partial, folder)
    except OSError:
        # The folder exists: a damaged table, or one that another process has written without a lock.
        if read() is None:
            shutil.rmtree(folder)
            os.replace(partial, folder)


class _Waiting:
    """What a process does while another one writes the table."""

    def __init__(self, folder: Path, source: Source, listener: TokenisingListener) -> None:
        self._folder, self._source, self._listener = folder, source, listener
        self._written = -1

    def __call__(self) -> None:
        written = sum(map(_written, _partials(self._folder)))
        if self._written < 0:
            self._listener.on_message(
                f"{self._source.name}: another run tokenises the same data ({holder(_lock_of(self._folder))}); waiting "
                "for it"
            )
        elif written != self._written:
            # Its progress is this run's progress. If it hangs, the watch ends this run.
            self._listener.on_work()
        self._written = written


def _lock_of(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.lock")


def _partials(folder: Path) -> list[Path]:
    """The partial folders of one key."""
    return sorted(folder.parent.glob(f"{folder.name}{_PARTIAL}*"))


def _written(partial: Path) -> int:
    """A number that grows with the chunks in a partial folder."""
    try:
        return (partial / JOURNAL).stat().st_size
    except OSError:
        return 0


def _age(partial: Path) -> float:
    """Seconds since a partial folder was written to; 0 if it is gone."""
    try:
        return time.time() - max(path.stat().st_mtime for path in (partial, *partial.iterdir()))
    except OSError:
        return 0.0


def _remove(folders: Iterable[Path]) -> None:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def _remove_old(folder: Path, listener: TokenisingListener) -> None:
    """Remove partial folders of other keys that nobody has continued for a week."""
    removed = 0
    for partial in folder.parent.glob(f"pairs-*{_PARTIAL}*"):
        other = partial.with_name(partial.name.partition(_PARTIAL)[0])
        if other == folder or _age(partial) < _OLD_AGE:
            continue
        descriptor = try_lock(_lock_of(other))
        if descriptor is not None:
            _remove([partial])
            _lock_of(other).unlink(missing_ok=True)
            os.close(descriptor)
            removed += 1
    if removed:
        listener.on_message(
            f"{folder.parent}: removed what {removed} runs that ended early had tokenised of other data over a week ago"
        )
