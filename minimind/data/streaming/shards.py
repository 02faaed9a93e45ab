"""The shards of one word of --data_path: tables of about equally many tokens, and the list of them.

    builder.py -> write_shard -> shard-000012/ (table_files.py) -> a line of shards.jsonl
    shards.jsonl, shard-000012/ -> ShardStore -> Shard, PairTable

The list says of each shard what the order of rows depends on, so it stays when a shard is removed. A shard depends on
the data and on how they are tokenised alone: one that is made again is the same.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from minimind.data.selection import left_out
from minimind.data.sources import Source
from minimind.data.table import PairTable
from minimind.data.table_files import JOURNAL, TableWriter, journal_entries, journal_line, read_table
from minimind.data.tokens import Chunk
from minimind.durable import sync_folder, sync_tree
from minimind.errors import DataError

LOCK = "lock"
_LIST, _PARTIAL = "shards.jsonl", ".partial"
# The last line of a list that is complete.
_END: dict[str, Any] = {"end": True}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Policies:
    """Which rows of a shard are trained on: --on_bad_row and --on_long_row."""

    on_bad_row: str
    on_long_row: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shard:
    """A line of the list.

    Attributes:
        number: from 0.
        source: place of its source among those of the word.
        first, rows: rows of the source before its own, and its own.
        pairs: entries of the table that are trained on.
        left_out: rows that are wrong, and entries that --on_long_row or --on_bad_row leave out.
        tokens: of the entries that are trained on, in packs.
        bytes: of the word's files that were read for it.
        last: number of the last row.
    """

    number: int
    source: int
    first: int
    rows: int
    pairs: int
    left_out: int
    tokens: int
    bytes: int
    last: int


class ShardStore:
    """A folder of shards.

    Args:
        folder: need not exist.
        sources: of the word, in the order in which they are tokenised.
        policies: part of what the folder's name is a hash of.
        run: tells the runs that share the folder apart. One whose tokenising fails ends; the next goes on with it.
        verifies: this process compares a shard that it opens with its checksums.
    """

    def __init__(
        self, folder: Path, sources: tuple[Source, ...], policies: Policies, *, run: str = "", verifies: bool = True
    ) -> None:
        self.folder, self.sources, self._policies, self._verifies = folder, sources, policies, verifies
        self._failed = folder / f"failed-{run}.txt"
        self.shards: list[Shard] = []
        self.ended = False
        self._read = 0

    def refresh(self) -> None:
        """Read the lines that the list has got since the last call."""
        try:
            with (self.folder / _LIST).open("rb") as file:
                file.seek(self._read)
                lines = [line for line in file.read().splitlines(keepends=True) if line.endswith(b"\n")]
        except FileNotFoundError:
            return
        # The last line may be half-written.
        for line, entry in zip(lines, journal_entries(iter(lines)), strict=False):
            self._read += len(line)
            if entry == _END:
                self.ended = True
                continue
            self.shards.append(Shard(**entry))
            if self.shards[-1].number != len(self.shards) - 1:
                raise DataError(
                    f"{self.folder / _LIST}: two processes have written it, so this file system has no locks; remove "
                    "the folder, and give a --cache_dir on another file system or one for each run"
                )

    def prepare(self) -> None:
        """Make the folder ready for a writer: what a killed one left half-written goes. Only for who holds the lock."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.refresh()
        if (self.folder / _LIST).exists():
            os.truncate(self.folder / _LIST, self._read)
        for partial in self.folder.glob(f"*{_PARTIAL}"):
            shutil.rmtree(partial)

    def write(self, source: int, first: int, chunks: Iterable[Chunk], max_length: int) -> Shard:
        """Write the shard that comes next in the list, which does not get it yet.

        Args:
            source: place of its source.
            first: rows of the source before it.
            chunks: its rows.
            max_length: the largest number of tokens of a row.

        Returns:
            The shard with 0 for `bytes` and `last`, which are known when all chunks have been read.
        """
        number = len(self.shards)
        rows = self._write_table(number, chunks, max_length)
        table = self._select(self._table(number, source))
        return Shard(
            number=number,
            source=source,
            first=first,
            rows=rows,
            pairs=len(table),
            left_out=sum(not bad.tokenized for bad in table.bad) + len(table.lines) - len(table),
            tokens=int(table.packed_tokens.sum()),
            bytes=0,
            last=0,
        )

    def rewrite(self, shard: Shard, chunks: Iterable[Chunk], max_length: int) -> None:
        """Write a shard of the list again, which has been removed.

        Raises:
            DataError: the rows are not those that it had.
        """
        rows = self._write_table(shard.number, chunks, max_length)
        table = self._select(self._table(shard.number, shard.source))
        if (rows, len(table), int(table.packed_tokens.sum())) != (shard.rows, shard.pairs, shard.tokens):
            shutil.rmtree(self.path(shard.number))
            raise DataError(
                f"{self.sources[shard.source].name}: rows {shard.first + 1} to {shard.first + shard.rows} are not what "
                f"they were when {self.folder} was begun; remove that folder to tokenise the data anew"
            )

    def append(self, shard: Shard) -> None:
        """Add a shard to the list."""
        self._append(dataclasses.asdict(shard))

    def end(self) -> None:
        """Note that the list is complete."""
        self._append(_END)

    def has(self, number: int) -> bool:
        """Whether a shard of the list is on the disk."""
        return self.path(number).is_dir()

    def open(self, shard: Shard) -> PairTable:
        """The entries of a shard that are trained on.

        Raises:
            DataError: its files are damaged.
        """
        return self._select(self._table(shard.number, shard.source, checked=not self._verifies))

    def remove_but(self, numbers: set[int]) -> None:
        """Remove all shards that are on the disk but these. Who has opened one can still read it."""
        for path in self.folder.glob("shard-*"):
            if path.suffix != _PARTIAL and int(path.name.removeprefix("shard-")) not in numbers:
                # A kill must not leave half a shard under its name.
                leftover = path.with_suffix(_PARTIAL)
                with contextlib.suppress(OSError):
                    os.replace(path, leftover)
                shutil.rmtree(leftover, ignore_errors=True)

    def path(self, number: int) -> Path:
        """The folder of a shard."""
        return self.folder / f"shard-{number:06d}"

    def written(self) -> int:
        """A number that grows while a shard is written."""
        try:
            partials = [path.stat().st_size for path in self.folder.glob(f"*{_PARTIAL}/{JOURNAL}")]
        except OSError:
            partials = []
        return self._read + sum(partials)

    def fail(self, reason: str) -> None:
        """Tell all readers of this run why no shard will follow."""
        self.folder.mkdir(parents=True, exist_ok=True)
        # Readers must not find the file before its text is there.
        written = self._failed.with_suffix(f".{os.getpid()}")
        try:
            written.write_text(reason, encoding="utf-8")
            os.replace(written, self._failed)
        except OSError:
            # On a full disk there is still room for a name.
            self._failed.touch()
            raise

    def failure(self) -> str:
        """Why no shard will follow; empty if one may."""
        try:
            reason = self._failed.read_text(encoding="utf-8")
        except FileNotFoundError:
            return ""
        return reason or f"{self.folder}: tokenising failed, and the reason could not be written: is the disk full?"

    def forget_failure(self) -> None:
        """A new writer starts."""
        self._failed.unlink(missing_ok=True)

    def _write_table(self, number: int, chunks: Iterable[Chunk], max_length: int) -> int:
        path = self.path(number)
        partial = path.with_suffix(_PARTIAL)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        writer = TableWriter(partial)
        try:
            for chunk in chunks:
                writer.append(chunk)
            writer.finish(max_length)
        except BaseException:
            # What is not complete must not fill the disk: the reason is still to be written.
            shutil.rmtree(partial, ignore_errors=True)
            raise
        finally:
            writer.close()
        (partial / JOURNAL).unlink()
        sync_tree(partial)
        # A folder of this name is one that the list has not got before a kill.
        shutil.rmtree(path, ignore_errors=True)
        os.replace(partial, path)
        sync_folder(self.folder)
        return writer.rows

    def _table(self, number: int, source: int, *, checked: bool = True) -> PairTable:
        path = self.path(number)
        table = read_table(path, self.sources[source], path.name, checked=checked)
        if table is None:
            raise DataError(f"{path}: the shard is damaged; remove this folder, and the next start makes it again")
        return table

    def _select(self, table: PairTable) -> PairTable:
        out = left_out(table, on_bad_row=self._policies.on_bad_row, on_long_row=self._policies.on_long_row)
        return dataclasses.replace(table, selected=np.flatnonzero(~out))

    def _append(self, entry: dict[str, Any]) -> None:
        with (self.folder / _LIST).open("ab") as file:
            file.write(journal_line(json.dumps(entry).encode()))
            file.flush()
            os.fsync(file.fileno())
        self.refresh()
