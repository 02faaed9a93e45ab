"""The files of a table: arrays that grow chunk by chunk, and a journal from which a killed run goes on.

    Chunk -> TableWriter.append -> tokens.i32, mask.u8, offsets.i64, ..., bad.jsonl, a line of journal.jsonl
    folder of a killed run -> TableWriter.take_over -> its whole chunks, copied
    TableWriter.finish -> meta.json
    folder -> read_table -> PairTable of memory maps

Memory is that of one chunk. A line of the journal has the length and checksum of what its chunk added to each file, and
a checksum of its own, so what a kill or a power cut left half-written is found without flushing after each chunk.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minimind.data.rows import BadRow
from minimind.data.sources import Source
from minimind.data.table import PairTable
from minimind.data.tokens import ROWS, Chunk
from minimind.durable import checksum

# Arrays of a table, by name, with their dtypes.
ARRAYS: Mapping[str, type[np.generic]] = {
    "tokens": np.int32,
    "mask": np.uint8,
    "offsets": np.int64,
    "full_lengths": np.int64,
    "prefixes": np.int64,
    "lines": np.int64,
    "prompt_lengths": np.int64,
    "least_limits": np.int64,
    "identities": np.uint64,
    "scores": np.float32,
    "labels": np.uint8,
    "cuts": np.uint8,
}
# Values for each pair.
_PER_PAIR = {
    "full_lengths": 2,
    "prefixes": 1,
    "lines": 1,
    "prompt_lengths": 1,
    "least_limits": 1,
    "identities": 3,
    "scores": 2,
    "labels": 1,
    "cuts": 1,
}
# Counters of a table: name -> number.
_COUNTERS = ("counts", "shapes", "unused")
_BAD, _META = "bad.jsonl", "meta.json"
# Beside the arrays until the table has its final name.
JOURNAL = "journal.jsonl"
# Names that a counter tells apart. The names of columns may be different in every row.
_NAMES = 1000
OTHERS = "further columns and keys"


def file_name(array: str) -> str:
    """Name of an array's file: "tokens.i32"."""
    dtype = np.dtype(ARRAYS[array])
    return f"{array}.{dtype.kind}{8 * dtype.itemsize}"


class TableWriter:
    """Writes the files of a table.

    Args:
        folder: an empty folder.

    Attributes:
        rows: number of rows of the source that are written.

    Raises:
        OSError: here and in all methods: a file cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._checksums = dict.fromkeys((*map(file_name, ARRAYS), _BAD), 0)
        self._counters = {name: Counter[str]() for name in _COUNTERS}
        self._bad = self._tokens = 0
        with contextlib.ExitStack() as stack:
            self._files = {name: stack.enter_context((folder / name).open("wb")) for name in self._checksums}
            self._journal = stack.enter_context((folder / JOURNAL).open("wb"))
            self._stack = stack.pop_all()
        # Row i is offsets[i] to offsets[i + 1].
        self._write({file_name("offsets"): np.zeros(1, ARRAYS["offsets"]).tobytes()})

    @property
    def rows(self) -> int:
        return self._counters["counts"][ROWS]

    def append(self, chunk: Chunk) -> None:
        """Write what a chunk adds to each file."""
        ends = self._tokens + np.cumsum(chunk.lengths, dtype=np.int64)
        arrays = {name: ends if name == "offsets" else getattr(chunk, name) for name in ARRAYS}
        blocks = {file_name(name): np.asarray(value, ARRAYS[name]).tobytes() for name, value in arrays.items()}
        blocks[_BAD] = "".join(json.dumps(dataclasses.asdict(row)) + "\n" for row in chunk.bad).encode()
        self._append(blocks, {name: getattr(chunk, name) for name in _COUNTERS}, len(chunk.bad))

    def take_over(self, folder: Path, on_chunk: Callable[[], object]) -> None:
        """Copy the chunks of another writer, up to the first that is not whole, and leave its folder as it is.

        Args:
            folder: of a writer of the same table that has ended or, without locks, may still be writing.
            on_chunk: called for each chunk.
        """
        with contextlib.ExitStack() as stack:
            try:
                files = {name: stack.enter_context((folder / name).open("rb")) for name in self._files}
                journal = stack.enter_context((folder / JOURNAL).open("rb"))
            except FileNotFoundError:
                return
            files[file_name("offsets")].seek(np.dtype(ARRAYS["offsets"]).itemsize)
            for entry in journal_entries(journal):
                blocks = {name: files[name].read(length) for name, (length, _) in entry["files"].items()}
                if _known(blocks) != entry["files"]:
                    return
                self._append(blocks, {name: entry[name] for name in _COUNTERS}, entry["bad"])
                on_chunk()

    def finish(self, max_length: int) -> None:
        """Close all files and write the description of the table."""
        self.close()
        meta = {"max_length": max_length, "bad": self._bad, **self._counters, "checksums": self._checksums}
        (self._folder / _META).write_text(json.dumps(meta))

    def close(self) -> None:
        """Close all files."""
        self._stack.close()

    def _append(self, blocks: Mapping[str, bytes], counters: Mapping[str, Mapping[str, int]], bad: int) -> None:
        self._write(blocks)
        self._bad += bad
        self._tokens += len(blocks[file_name("mask")])
        for name, values in counters.items():
            _add(self._counters[name], values)
        entry = json.dumps({"files": _known(blocks), "bad": bad, **counters}).encode()
        self._journal.write(journal_line(entry))
        self._journal.flush()

    def _write(self, blocks: Mapping[str, bytes]) -> None:
        for name, block in blocks.items():
            self._files[name].write(block)
            self._files[name].flush()
            self._checksums[name] = zlib.crc32(block, self._checksums[name])


def _known(blocks: Mapping[str, bytes]) -> dict[str, list[int]]:
    """Length and checksum of what a chunk adds to each file."""
    return {name: [len(block), zlib.crc32(block)] for name, block in blocks.items()}


def journal_line(entry: bytes) -> bytes:
    """A line of a journal, with a checksum that shows whether it is whole."""
    return b"%08x %s\n" % (zlib.crc32(entry), entry)


def journal_entries(journal: Iterator[bytes]) -> Iterator[dict[str, Any]]:
    """The entries of a journal, up to the first that is damaged."""
    for line in journal:
        known, _, entry = line.rstrip(b"\n").partition(b" ")
        if known != b"%08x" % zlib.crc32(entry):
            return
        yield json.loads(entry)


def _add(counter: Counter[str], values: Mapping[str, int]) -> None:
    for name, number in values.items():
        counter[name if name in counter or len(counter) < _NAMES else OTHERS] += number


@dataclasses.dataclass(frozen=True, kw_only=True)
class BadRows:
    """The bad rows of a table, read from its file each time.

    Attributes:
        path: a JSON object in each line.
        number: of bad rows.
    """

    path: Path
    number: int

    def __len__(self) -> int:
        return self.number

    def __iter__(self) -> Iterator[BadRow]:
        with self.path.open(encoding="utf-8") as file:
            yield from (BadRow(**json.loads(line)) for line in file)

    def __contains__(self, row: object) -> bool:
        return any(row == one for one in self)


def read_table(
    folder: Path,
    source: Source,
    key: str,
    on_progress: Callable[[], object] = lambda: None,
    *,
    checked: bool = False,
) -> PairTable | None:
    """The table in a folder, or None if it is missing or damaged.

    Args:
        on_progress: called for each block of a file that is compared with its checksum.
        checked: the files have just been compared with their checksums.
    """
    try:
        meta = json.loads((folder / _META).read_text(encoding="utf-8"))
        # An array with wrong values, such as a mask of zeros, would train without a word on something else.
        sums = {} if checked else meta["checksums"]
        if any(checksum(folder / name, on_progress) != value for name, value in sums.items()):
            return None
        arrays: dict[str, Any] = {name: _map(folder / file_name(name), dtype) for name, dtype in ARRAYS.items()}
        table = PairTable(
            source=source,
            key=key,
            **arrays,
            max_length=meta["max_length"],
            bad=BadRows(path=folder / _BAD, number=meta["bad"]),
            **{name: meta[name] for name in _COUNTERS},
            selected=np.arange(len(arrays["lines"])),
        )
        return table if _is_consistent(table) else None
    except Exception:  # noqa: BLE001 - a damaged description raises many exceptions; the caller writes the table again
        return None


def _is_consistent(table: PairTable) -> bool:
    """Whether the sizes of the arrays agree."""
    number = len(table.lines)
    if any(len(getattr(table, name)) != values * number for name, values in _PER_PAIR.items()):
        return False
    if not (isinstance(table.max_length, int) and all(isinstance(getattr(table, name), dict) for name in _COUNTERS)):
        return False
    return len(table.offsets) == 2 * number + 1 and len(table.tokens) == len(table.mask) == table.offsets[-1]


def _map(path: Path, dtype: type[np.generic]) -> NDArray[Any]:
    """A file as a memory-mapped array."""
    # mmap rejects empty files.
    return np.asarray(np.memmap(path, dtype=dtype, mode="r")) if path.stat().st_size else np.empty(0, dtype)
