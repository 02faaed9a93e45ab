"""Cache of the reference's row log-probs: each pair is scored once and kept on disk (`--reference cached`).

    ReferenceCache reads known pairs -> fill: a live reference scores the missing ones -> CachedReference

    cache_dir/reference-KEY/about.json    what the numbers depend on
                           /rows.bin      one record per pair, written at once when all pairs are known
                           /part-*.bin    records as they are scored, one file per run, deleted when rows.bin exists

The key is a hash of everything that the numbers depend on, and of nothing else: weights, model, tokens, dtype, layout.
Records hold sums over rows, which serve sums and means alike. Rank 0 alone reads and writes the files.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from minimind.data.loader import ahead
from minimind.data.packs import Layout, PairBatch
from minimind.data.table import PairTable
from minimind.engine.reference import ModelReference, Reference
from minimind.engine.reference_records import Records, read_records, seal_records
from minimind.errors import DataError, TrainingError
from minimind.model.device_transfer import HostCopy, to_device
from minimind.objective.rows import ReferenceScores
from minimind.ranks.collectives import agree, from_main, gather
from minimind.ranks.world import World

# Increased when the scored numbers or the file format change.
_FORMAT = 2
# Largest number of rows in a message.
_LISTED = 10

# The pairs that each rank scores in one round, by their places among the selected ones.
Shares = list[NDArray[np.int64]]


class CachedReference(Reference):
    """The reference as a table of row sums.

    Args:
        caches: of each source of the pairs, in their order; all pairs that are trained on are known.
        device: device of the returned tensors.
    """

    def __init__(self, caches: Sequence[ReferenceCache], device: torch.device) -> None:
        self.device = device
        self._folders = [cache.folder for cache in caches]
        self._ends = np.cumsum([len(cache.sums) for cache in caches])
        self._sums = np.concatenate([cache.sums for cache in caches])
        self._known = np.concatenate([cache.known for cache in caches])

    def score(self, batches: Sequence[PairBatch], per_token: bool = False) -> list[ReferenceScores]:
        """Scores of a global step's micro-batches; log-probs of single tokens are not in the cache."""
        assert not per_token, "the cache holds sums over rows"
        scores = []
        for batch in batches:
            indices = np.array(batch.indices)
            assert self._known[indices].all(), "a pair that was not scored"
            scores.append(ReferenceScores(sums=to_device(self._sums[indices], self.device)))
        return scores

    def mismatch(self, worst: float, index: int, place: str, start_value: float | None) -> str:
        folder = self._folders[int(np.searchsorted(self._ends, index, side="right"))]
        return (
            f"{folder}: the cached reference log-probs of {place} differ by {worst:.3g} from those that the start "
            "weights give now, in a row's mean log-prob. Delete the folder to compute them again, or train with "
            "--reference live."
        )


class ReferenceCache:
    """Known log-probs of the reference for one source.

    Args:
        cache_dir: the cache's folder is `reference-KEY` in this folder.
        table: the pairs. Those that it selects are scored; the cache may know others, of other selections.
        about: what the numbers depend on besides the pairs, as JSON values.
        world: the ranks.
        on_progress: called after each forward of `fill`.

    Raises:
        DataError: on every rank, if the folder cannot be read.
    """

    def __init__(
        self,
        cache_dir: Path,
        table: PairTable,
        about: Mapping[str, Any],
        world: World,
        on_progress: Callable[[], object] = lambda: None,
    ) -> None:
        self.world = world
        self._on_progress = on_progress
        self.table = table
        self.about = {"format": _FORMAT, "pairs": table.key, **about}
        # Sorted keys: the order of a dictionary must not make another cache.
        self.key = hashlib.sha256(json.dumps(self.about, sort_keys=True).encode()).hexdigest()[:24]
        self.folder = cache_dir / f"reference-{self.key}"
        self._load()

    def __len__(self) -> int:
        return len(self.table)

    @property
    def num_known(self) -> int:
        """Number of selected pairs that need no scoring."""
        return int(self.known[self.table.selected].sum())

    def fill(
        self, reference: ModelReference, layout: Layout, on_progress: Callable[[], object] = lambda: None
    ) -> Iterator[int]:
        """Score the missing pairs on all ranks, and write them as they come; yields the growing number of known pairs.

        Raises:
            TrainingError: on every rank, if a log-prob is not finite; names its row.
            DataError: on every rank, if the numbers cannot be written.
        """
        name = f"part-{uuid.uuid4().hex[:12]}.bin"
        # Rank 0 writes, and every rank hears whether it could: a rank that went on alone would wait in the next
        # forward.
        agree(self.world, self._describe, runs=self.world.is_main)
        for shares, copied in self._scored(reference, layout):
            scored = gather(self.world, copied.numpy()[: len(shares[self.world.rank])])
            indices, values = self.table.selected[np.concatenate(shares)], np.concatenate(scored)
            self._check_finite(indices, values)
            self.sums[indices], self.known[indices] = values, True
            agree(self.world, functools.partial(self._append, name, indices), runs=self.world.is_main)
            on_progress()
            yield self.num_known
        agree(self.world, self._finish, runs=self.world.is_main)
        # Another run may have finished first. All runs must train with the numbers that are on disk now.
        self._load()
        if self.num_known < len(self):
            raise DataError(f"{self.folder}: the written file cannot be read back; see --cache_dir", agreed=True)

    def _scored(self, reference: ModelReference, layout: Layout) -> Iterator[tuple[Shares, HostCopy]]:
        """Run the forwards; yields the pairs of each round, and the sums of this rank's pairs (n, 2).

        A forward is enqueued before the one before it is read, so that a GPU need not wait for files and other ranks.
        """

        def build() -> Iterator[tuple[Shares, PairBatch]]:
            for shares in self._rounds(reference.pairs_per_forward):
                mine = shares[self.world.rank]
                # Under ZeRO-3 all ranks must run every forward. A rank without a missing pair scores pair 0 and drops
                # the result.
                batch = layout([self.table[int(place)] for place in (mine if len(mine) else [0])])
                yield shares, batch.pin_memory() if self.world.pins_memory else batch

        before: tuple[Shares, HostCopy] | None = None
        for shares, batch in ahead(build()):
            (scores,) = reference.score([batch.to_device(self.world.device)])
            enqueued = shares, HostCopy(scores.sums)
            if before is not None:
                yield before
            before = enqueued
        if before is not None:
            yield before

    def _rounds(self, pairs_per_forward: int) -> Iterator[Shares]:
        """Missing pairs, by their place among the selected ones: for each forward a list of one array per rank.

        Pairs are sorted by cost and dealt in turn, so that all forwards cost about the same.
        """
        missing = np.flatnonzero(~self.known[self.table.selected])
        # The most expensive first: too little memory shows in the first forward, not in the last.
        missing = missing[np.argsort(-self.table.costs[missing], kind="stable")]
        ranks = self.world.size
        forwards = -(-len(missing) // (pairs_per_forward * ranks))
        for first in range(0, forwards * ranks, ranks):
            # Each takes every (forwards * ranks)-th pair of the sorted ones, so that a forward has cheap and expensive
            # ones.
            yield [missing[first + rank :: forwards * ranks] for rank in range(ranks)]

    def _check_finite(self, indices: NDArray[np.int64], values: NDArray[np.float32]) -> None:
        bad = indices[~np.isfinite(values).all(1)]
        if len(bad):
            source = self.table.source
            raise TrainingError(
                f"the reference's log-probs are not finite for {len(bad)} pairs of {source.name}, first in "
                f"{source.listed(sorted(self.table.lines[bad]), _LISTED)}. Check the start weights, or use another "
                "--dtype.",
                agreed=True,
            )

    def _load(self) -> None:
        """Read the files on rank 0 and send their numbers to all ranks."""
        self.sums, self.known = from_main(self.world, self._read)

    def _read(self) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        number = len(self.table.lines)
        sums, known = np.zeros((number, 2), np.float32), np.zeros(number, np.bool_)
        # rows.bin comes last, so that its numbers win over those of parts.
        for path in [*self._parts(), self.folder / "rows.bin"]:
            self._read_into(path, sums, known)
        return sums, known

    def _parts(self) -> list[Path]:
        return sorted(self.folder.glob("part-*.bin"))

    def _read_into(self, path: Path, sums: NDArray[np.float32], known: NDArray[np.bool_]) -> None:
        """Put the numbers of a file into the arrays; nothing if there is no such file."""
        try:
            # Another run deletes parts when it has written rows.bin.
            with contextlib.suppress(FileNotFoundError):
                records = read_records(path, self.key)
                records = records[(records["pair"] >= 0) & (records["pair"] < len(known))]
                # A record whose numbers of targets are not those of the pair is of other tokens: it is scored again.
                records = records[(self._counts[records["pair"]] == records["counts"]).all(1)]
                sums[records["pair"]], known[records["pair"]] = records["sums"], True
        except OSError as error:
            raise DataError(f"{self.folder}: cannot be read ({error}); see --cache_dir") from error

    @functools.cached_property
    def _counts(self) -> NDArray[np.int64]:
        """Number of targets of each pair's chosen and rejected row, (n, 2). A row's first token is no target."""
        starts = self.table.offsets[:-1]
        counts = np.add.reduceat(self.table.mask, starts, dtype=np.int64) - self.table.mask[starts]
        return counts.astype(np.int64).reshape(-1, 2)

    def _records(self, indices: NDArray[np.int64]) -> Records:
        return seal_records(indices, self.sums[indices], self._counts[indices], self.key)

    def _describe(self) -> None:
        self._write("about.json", json.dumps(self.about, indent=1, ensure_ascii=False, sort_keys=True).encode())

    def _append(self, name: str, indices: NDArray[np.int64]) -> None:
        try:
            # Appended as pairs are scored: after a kill the next run scores the rest only.
            with (self.folder / name).open("ab") as file:
                file.write(self._records(indices).tobytes())
        except OSError as error:
            raise self._unwritable(error) from error

    def _finish(self) -> None:
        """Write all that is known to rows.bin, and delete the parts that it now has.

        Numbers that rows.bin has already stay: a run that trains with them may be stopped, and must find the very same
        numbers when it resumes.
        """
        parts = self._parts()
        sums, known = self._read()
        stored = np.zeros_like(known)
        self._read_into(self.folder / "rows.bin", sums, stored)
        # Parts of other runs at work give only what this run does not know itself.
        taken = stored | (known & ~self.known)
        self.sums[taken], self.known = sums[taken], self.known | known
        if (self.known & ~stored).any():
            self._write("rows.bin", self._records(np.flatnonzero(self.known)).tobytes())
        with contextlib.suppress(OSError):
            for path in parts:
                path.unlink()

    def _write(self, name: str, content: bytes) -> None:
        """Write a file completely or not at all."""
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
