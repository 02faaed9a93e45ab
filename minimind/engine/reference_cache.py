"""The reference's row log-probs, scored once and kept on disk under a key made of content: `--reference cached`.

    ReferenceCache reads what is there -> fill: the reference's shard scores what is missing -> CachedReference

    cache_dir/reference-KEY/about.json    what the numbers are of
                           /rows.bin      a record for every pair, put in place at once
                           /part-*.bin    records as they are scored; one for each run, and gone when rows.bin is there

The key is a hash of all that the numbers depend on and of nothing else: weights, model, tokens, dtype, layout. Records
hold sums over rows, so that they serve mean and sum alike. Rank 0 alone touches the files; the others are told.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import uuid
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from minimind.data.loader import Layout
from minimind.data.packs import PairBatch
from minimind.data.table import PairTable
from minimind.engine.reference import Reference, RowReference
from minimind.errors import DataError, TrainingError
from minimind.ranks.process import World, agree, from_main, gather

# Counts up when what is scored, or how it is written, changes.
_FORMAT = 1
# One pair: its line, the summed log-probs and the targets of its chosen and rejected rows, and a checksum of all that.
RECORD = np.dtype([("line", "<i8"), ("sums", "<f4", 2), ("counts", "<i4", 2), ("checksum", "<u4")])

Records = NDArray[np.void]


class CachedReference(RowReference):
    """The reference as a table of numbers.

    Args:
        lines: (n,) int64, ascending: where the pairs stand in their file.
        sums: (n, 2) float32, summed log-probs of their chosen and rejected rows.
        device: where a step wants them.
        folder: where they were read, for messages.
    """

    def __init__(self, lines: NDArray[np.int64], sums: NDArray[np.float32], device: torch.device, folder: Path) -> None:
        self.lines, self.sums, self.device, self.folder = lines, torch.from_numpy(sums), device, folder

    def row_sums(self, batches: Sequence[PairBatch]) -> list[Tensor]:
        sums = []
        for batch in batches:
            places, found = _places(self.lines, np.array(batch.lines))
            assert found.all(), "a pair of another table"
            sums.append(self.sums[places].to(self.device, non_blocking=True))
        return sums

    def mismatch(self, worst: float, line: int) -> str:
        return (
            f"{self.folder}: the reference's log-probs kept for the pair at line {line} are {worst:.3g} off those that "
            "the start weights give now, in a row's mean log-prob. Delete the folder, and they are computed anew, or "
            "train with --reference live."
        )


class ReferenceCache:
    """What is kept of the reference for one preference file.

    Args:
        cache_dir: `reference-KEY` lies there.
        table: the pairs. All that could be tokenised are kept, whichever the run's policy for bad rows selects.
        about: what the numbers depend on besides the pairs; anything that JSON can write.
        world: the ranks.

    Raises:
        DataError: on every rank, if the folder cannot be read.
    """

    def __init__(self, cache_dir: Path, table: PairTable, about: Mapping[str, Any], world: World) -> None:
        self.world = world
        self.table = dataclasses.replace(table, selected=np.arange(len(table.lines)))
        self.about = {"format": _FORMAT, "pairs": table.key, **about}
        self.key = hashlib.sha256(json.dumps(self.about, sort_keys=True).encode()).hexdigest()[:24]
        self.folder = cache_dir / f"reference-{self.key}"
        self._load()

    def __len__(self) -> int:
        return len(self.table)

    @property
    def num_known(self) -> int:
        """How many pairs need no scoring."""
        return int(self.known.sum())

    def fill(self, reference: Reference, layout: Layout) -> Iterator[int]:
        """Score what is missing on all ranks, and keep it as it comes; gives the number of known pairs as it grows.

        Raises:
            TrainingError: on every rank, if a log-prob is not finite; its line is named.
            DataError: on every rank, if the numbers cannot be written.
        """
        name = f"part-{uuid.uuid4().hex[:12]}.bin"
        agree(self.world, self._describe, runs=self.world.is_main)
        for hands in self._rounds(reference.pairs_per_forward):
            mine = hands[self.world.rank]
            # Under ZeRO-3 all ranks must run every forward; one without a pair left scores some pair for nothing.
            batch = layout([self.table[int(index)] for index in (mine if len(mine) else [0])])
            (sums,) = reference.row_sums([batch.to_device(self.world.device)])
            scored = gather(self.world, sums[: len(mine)].cpu().numpy())
            indices, values = np.concatenate(hands), np.concatenate(scored)
            self._check_finite(indices, values)
            self.sums[indices], self.known[indices] = values, True
            agree(self.world, functools.partial(self._append, name, indices), runs=self.world.is_main)
            self.world.watch.tick()
            yield self.num_known
        agree(self.world, self._finish, runs=self.world.is_main)
        # Another run may have been first: what lies there now is what every run from now on trains with.
        self._load()
        if self.num_known < len(self):
            error = DataError(f"{self.folder}: what was written there cannot be read back; see --cache_dir")
            error.agreed = True
            raise error

    def reference(self) -> CachedReference:
        """The numbers as a step wants them; all must be known."""
        assert self.known.all()
        return CachedReference(self.table.lines, self.sums, self.world.device, self.folder)

    def _rounds(self, pairs_per_forward: int) -> Iterator[list[NDArray[np.int64]]]:
        """Indices of missing pairs, a list of one array per rank for each forward.

        The dearest are dealt first, to one hand after the other: all hands cost about the same.
        """
        missing = np.flatnonzero(~self.known)
        missing = missing[np.argsort(-self.table.costs[missing], kind="stable")]
        ranks = self.world.size
        forwards = -(-len(missing) // (pairs_per_forward * ranks))
        for first in range(0, forwards * ranks, ranks):
            yield [missing[first + rank :: forwards * ranks] for rank in range(ranks)]

    def _check_finite(self, indices: NDArray[np.int64], values: NDArray[np.float32]) -> None:
        bad = indices[~np.isfinite(values).all(1)]
        if len(bad):
            lines = ", ".join(str(line) for line in sorted(self.table.lines[bad])[:10])
            error = TrainingError(
                f"the reference's log-probs are not finite for {len(bad)} pairs of {self.table.path}, first at lines "
                f"{lines}. Check the start weights, or take another --dtype."
            )
            error.agreed = True
            raise error

    def _load(self) -> None:
        """Read what is kept, on rank 0, and tell it to all."""
        self.sums, self.known = from_main(self.world, self._read)

    def _read(self) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        sums, known = np.zeros((len(self), 2), np.float32), np.zeros(len(self), np.bool_)
        try:
            for path in [*sorted(self.folder.glob("part-*.bin")), self.folder / "rows.bin"]:
                # A part that another run has just made rows.bin of is gone.
                with contextlib.suppress(FileNotFoundError):
                    records = read_records(path, self.key)
                    places, ours = _places(self.table.lines, records["line"])
                    ours &= (self._counts[places] == records["counts"]).all(1)
                    sums[places[ours]], known[places[ours]] = records["sums"][ours], True
        except OSError as error:
            raise DataError(f"{self.folder}: cannot be read ({error}); see --cache_dir") from error
        return sums, known

    @functools.cached_property
    def _counts(self) -> NDArray[np.int64]:
        """Targets of each pair's chosen and rejected row, (n, 2): masked tokens, but for a row's first, which nothing
        predicts."""
        starts = self.table.offsets[:-1]
        counts = np.add.reduceat(self.table.mask, starts, dtype=np.int64) - self.table.mask[starts]
        return counts.astype(np.int64).reshape(-1, 2)

    def _records(self, indices: NDArray[np.int64]) -> Records:
        return seal_records(self.table.lines[indices], self.sums[indices], self._counts[indices], self.key)

    def _describe(self) -> None:
        self._write("about.json", json.dumps(self.about, indent=1, ensure_ascii=False, sort_keys=True).encode())

    def _append(self, name: str, indices: NDArray[np.int64]) -> None:
        try:
            with (self.folder / name).open("ab") as file:
                file.write(self._records(indices).tobytes())
        except OSError as error:
            raise self._unwritable(error) from error

    def _finish(self) -> None:
        """Put all records in place at once. Those of a run that was faster stay: a run that trains with them may be
        stopped, and must go on with the very same numbers."""
        try:
            if len(read_records(self.folder / "rows.bin", self.key)) < len(self):
                raise FileNotFoundError
        except FileNotFoundError:
            self._write("rows.bin", self._records(np.arange(len(self))).tobytes())
        with contextlib.suppress(OSError):
            for path in self.folder.glob("part-*.bin"):
                path.unlink()

    def _write(self, name: str, content: bytes) -> None:
        """Write a file whole or not at all."""
        partial = self.folder / f"{name}.{uuid.uuid4().hex[:12]}.partial"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with partial.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, self.folder / name)
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> DataError:
        return DataError(f"{self.folder}: the reference's log-probs cannot be written ({error}); see --cache_dir")


def _places(lines: NDArray[np.int64], wanted: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Where wanted lines stand among ascending ones, and whether they do."""
    places = np.searchsorted(lines, wanted).clip(max=len(lines) - 1)
    return places, lines[places] == wanted


def seal_records(lines: NDArray[Any], sums: NDArray[Any], counts: NDArray[Any], key: str) -> Records:
    """Records with their checksums, in which the cache's key is counted: another cache's records are no records."""
    records = np.zeros(len(lines), RECORD)
    records["line"], records["sums"], records["counts"] = lines, sums, counts
    records["checksum"] = _checksums(records, key)
    return records


def read_records(path: Path, key: str) -> Records:
    """The whole and undamaged records of a file; a kill in the middle of a write leaves a torn one at its end."""
    content = path.read_bytes()
    records = np.frombuffer(content, RECORD, len(content) // RECORD.itemsize)
    return records[records["checksum"] == _checksums(records, key)]


def _checksums(records: Records, key: str) -> NDArray[np.uint32]:
    start, content, size = zlib.crc32(key.encode()), records.tobytes(), RECORD.itemsize
    ends = range(size, len(content) + 1, size)
    return np.array([zlib.crc32(content[end - size : end - 4], start) for end in ends], np.uint32)
