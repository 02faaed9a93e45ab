"""Loads the pairs of a run by the run's own code: the same cache, the same checks, the same rows refused.

Inputs -> load_pairs -> LoadedPairs: tables, and what would stop the run
"""

from __future__ import annotations

import dataclasses

from minimind.config import FLAG, DataConfig, Settings
from minimind.data.pair_tables import PairTables
from minimind.data.selection import ERROR, SKIP
from minimind.data.sets import plain_words
from minimind.data.shapes import Items
from minimind.data.sources import find_sources
from minimind.data.table import PairTable
from minimind.data.table_build import TokenisingListener
from minimind.errors import ConfigError, DataError
from minimind.inspection.opening import Inputs
from minimind.objective.interface import AnyObjective
from minimind.training.jobs.kinds import kind_of
from minimind.training.setup.training_data import check_needs, narrowed, select_table, tokenized_table


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoadedPairs:
    """The pairs of a run.

    Attributes:
        settings: those of the run that will be started. Where rows are wrong and no flag says what to do with them,
            --on_bad_row is skip.
        tables: of the pairs that are trained on.
        held_out: of the pairs for evaluation; none, if there are none.
        obstacles: why the run would stop at these pairs, although others could be trained on.
    """

    settings: Settings
    tables: tuple[PairTable, ...]
    held_out: tuple[PairTable, ...]
    obstacles: tuple[str, ...]


def load_pairs(inputs: Inputs, listener: TokenisingListener) -> LoadedPairs:
    """Tokenise the pairs of a run, or read them from the cache, which the run then finds.

    Raises:
        DataError: a source cannot be used, or no pair of it can be trained on.
    """
    settings, items = inputs.settings, items_of(inputs)
    data = settings.config.data
    tables, held_out = (
        [tokenized_table(settings.config, inputs.tokenizer, source, listener, items) for source in find_sources(words)]
        for words in (data.data_path, plain_words(data.eval_data_path))
    )
    wrong = any(table.bad for table in (*tables, *held_out))
    if wrong and data.on_bad_row == ERROR and not settings.explicit("on_bad_row"):
        settings = settings.with_values({"on_bad_row": SKIP}, FLAG)
        data = settings.config.data
    obstacles: list[str] = []
    selected, evaluated = (tuple(_select(table, data, obstacles) for table in parts) for parts in (tables, held_out))
    narrow, narrow_held_out = narrowed(
        PairTables(tables=selected), PairTables(tables=evaluated) if evaluated else None, data
    )
    objective = objective_of(inputs)
    for pairs in (narrow, narrow_held_out):
        try:
            if pairs is not None and objective is not None:
                check_needs(objective, pairs)
        except DataError as error:
            obstacles.append(str(error))
    return LoadedPairs(
        settings=settings,
        tables=narrow.tables,
        held_out=narrow_held_out.tables if narrow_held_out else (),
        obstacles=tuple(obstacles),
    )


def items_of(inputs: Inputs) -> Items:
    """What the rows of the run become."""
    return kind_of(inputs.settings.config).items(objective_of(inputs))


def objective_of(inputs: Inputs) -> AnyObjective | None:
    """The loss of the run, also if weights or other files are not there; None if its flags are wrong."""
    if inputs.prepared is not None:
        return inputs.prepared.objective
    try:
        return kind_of(inputs.settings.config).choose(inputs.settings, None)[1]
    except ConfigError:
        return None  # the obstacle of the inputs says so


def _select(table: PairTable, data: DataConfig, obstacles: list[str]) -> PairTable:
    """The pairs that the run uses, or would use if it left out what it stops at."""
    try:
        return select_table(table, data)
    except DataError as error:
        bad, long = (SKIP if policy == ERROR else policy for policy in (data.on_bad_row, data.on_long_row))
        if (bad, long) == (data.on_bad_row, data.on_long_row):
            raise
        selected = select_table(table, dataclasses.replace(data, on_bad_row=bad, on_long_row=long))
        obstacles.append(str(error))
        return selected
