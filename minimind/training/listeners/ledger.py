"""The ledger of a run (--ledger 1): what the policy thinks of each pair whenever it meets it, on the disk.

    train_step -> met: values stay on the device -> (Log) the host -> (Save, End, many rows) rank 0 -> ledger/*.parquet
    Evaluated -> values of all held-out pairs    ------------------->

Nothing waits for the device: a logged step has waited for it already. A save writes the rows of all steps before it, so
that a resumed run goes on with a ledger without gaps, and drops what comes after the checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from minimind.data.packs import Batch
from minimind.data.pair_tables import PairTables
from minimind.diagnosis import ledger
from minimind.engine.monitor import Outage
from minimind.ranks.collectives import gather
from minimind.ranks.world import World
from minimind.training.console import Console
from minimind.training.events import End, Evaluated, Listener, Log, Save
from minimind.training.jobs.dpo import ROW_VALUES
from minimind.training.jobs.job import BatchOutcome, Job

# Column of the ledger -> its name among the values of an item, in the order of `ledger.VALUES`.
_NAMES = {
    "loss": "loss",
    "margin": "rewards/margins",
    **{name: name for name in ROW_VALUES},
    "chosen_tokens": "lengths/chosen",
    "rejected_tokens": "lengths/rejected",
}
# Rows of a rank that are written even without a save.
_MANY = 2**17


def kept_values(job: Job, has_reference: bool) -> dict[str, str]:
    """Column of a ledger -> name of its value among those of an item, for those that a job has."""
    own = {"loss", *job.metrics, *(ROW_VALUES if has_reference else ROW_VALUES[:2])}
    return {column: name for column, name in _NAMES.items() if name in own}


class LedgerFiles(Listener):
    """Keeps the values of pairs, and writes them.

    Args:
        folder: the run's folder.
        values: as from `kept_values`.
        table: the training pairs.
        eval_table: the held-out pairs; None without any.
        eval_sets: name of each set of held-out pairs -> its indices in `eval_table`.
        console: says when rows could not be written.

    Attributes:
        values: the same.
    """

    name = "ledger"

    def __init__(
        self,
        *,
        folder: Path,
        values: Mapping[str, str],
        table: PairTables,
        eval_table: PairTables | None,
        eval_sets: Mapping[str, range],
        console: Console,
        world: World,
    ) -> None:
        self._folder, self.values, self._table = folder, values, table
        self._eval_table, self._eval_sets = eval_table, eval_sets
        self._console, self._world = console, world
        self._outage = Outage(ledger.FOLDER)
        # Of the files as the run has read them: later they may change, or be gone.
        self._sources, self._eval_sources = _sources(table), _sources(eval_table)
        # Of this rank since the last logged step: (C, N) on the device; steps and pairs of these columns.
        self._met: list[Tensor] = []
        self._steps: list[int] = []
        self._pairs: list[int] = []
        # Columns of this rank on the host: step, pair, values. Rows of rank 0 that are not on the disk.
        self._columns: list[NDArray[np.float64]] = []
        self._rows: list[ledger.Ledger] = []
        if world.is_main:
            ledger.load_libraries()  # before the first step, not within a save

    def met(self, step: int, batch: Batch, outcome: BatchOutcome) -> None:
        """Keep the values of a micro-batch of a global step."""
        # One small kernel; nothing waits for its result.
        self._met.append(torch.stack([outcome.of_items(name) for name in self.values.values()]))
        self._steps += [step] * len(batch.indices)
        self._pairs += batch.indices

    def on_log(self, event: Log) -> None:
        self._fetch()
        # All ranks have as many pairs of every step, so all of them write here or none does.
        if sum(part.shape[1] for part in self._columns) >= _MANY:
            self._write()

    def on_evaluated(self, event: Evaluated) -> None:
        if not self._world.is_main:
            return  # the evaluation has gathered them already
        assert self._eval_table is not None
        pairs = self._eval_table.indices[self._eval_sets[event.name]]
        # In the order of the set, which is that of `indices`: `KeptItems` restores it over ranks.
        values = np.stack([event.kept[name] for name in self.values.values()])
        name = f"{ledger.EVAL}/{event.name}" if event.name else ledger.EVAL
        self._rows.append(self._of(self._eval_table, name, np.full(len(pairs), event.step), pairs, values))

    def on_save(self, event: Save) -> None:
        self._write()

    def on_end(self, event: End) -> None:
        # A run that a listener has ended may have been evaluated after its last save.
        self._write()

    def _fetch(self) -> None:
        """Take what was met to the host."""
        if not self._met:
            return
        # As float64, whole numbers are exact up to 2^53.
        places = np.array([self._steps, self._pairs], np.float64)
        self._columns.append(np.concatenate((places, torch.cat(self._met, 1).cpu().numpy())))
        self._met, self._steps, self._pairs = [], [], []

    def _write(self) -> None:
        """Write all rows of all ranks; all ranks call. What cannot be written now is tried again at the next save."""
        self._fetch()
        # Cleared before the write: rows that cannot be written wait on rank 0, in `_rows`.
        columns = gather(self._world, np.concatenate(self._columns, 1) if self._columns else None)
        self._columns = []
        if not self._world.is_main:
            return
        if any(part is not None for part in columns):
            steps, pairs, *values = np.concatenate([part for part in columns if part is not None], 1)
            numbers = (steps.astype(np.int64), pairs.astype(np.int64))
            self._rows.append(self._of(self._table, ledger.TRAIN, *numbers, np.stack(values)))
        if self._rows:
            for message in self._outage.attempt(self._append):
                self._console.say(message)

    def _append(self) -> None:
        ledger.append(self._folder, ledger.joined(self._rows))
        self._rows = []

    def _of(
        self,
        table: PairTables,
        name: str,
        steps: NDArray[np.int64],
        pairs: NDArray[np.int64],
        values: NDArray[np.float64],
    ) -> ledger.Ledger:
        """Rows of one set, with the places of their pairs."""
        places = table.rows_of(pairs)
        # float32 on the disk halves the files; a margin needs no more digits.
        known = dict(zip(self.values, values.astype(np.float32), strict=True))
        # Every file has the same columns, whatever loss and reference a run has.
        unknown = np.full(len(pairs), np.nan, np.float32)
        return ledger.Ledger(
            sources=self._sources if table is self._table else self._eval_sources,
            sets=(name,),
            step=steps,
            set=np.zeros(len(pairs), np.int64),
            source=places.sources,
            line=places.lines,
            part=places.parts,
            pair=pairs,
            prompt_tokens=places.prompt_lengths,
            values={column: known.get(column, unknown) for column in ledger.VALUES},
        )


def _sources(table: PairTables | None) -> tuple[ledger.LedgerSource, ...]:
    return tuple(
        ledger.LedgerSource.of(one.source.name, one.source.files, one.source.unit)
        for one in (() if table is None else table.tables)
    )
