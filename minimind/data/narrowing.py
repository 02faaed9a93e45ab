"""Takes equal pairs once and the first pairs only, and counts prompts that held-out pairs have too.

    PairTables -> without_duplicates (--dedup) -> first_pairs (--limit) -> PairTables with fewer pairs selected
    PairTables of training, of evaluation -> shared_prompts -> number of pairs

Pairs and prompts are equal if their messages are; see identity.py.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from minimind.data.pair_tables import PairTables


def without_duplicates(tables: PairTables) -> PairTables:
    """The first of equal pairs, in the order of the sources."""
    identities = _identities(tables)
    # The sort is stable, so that the first pair of each run of equal ones has the smallest index.
    order = np.lexsort(identities.T)
    repeats = (identities[order[1:]] == identities[order[:-1]]).all(1)
    kept = np.ones(len(order), np.bool_)
    kept[order[1:][repeats]] = False
    return dataclasses.replace(_keep(tables, kept), duplicates=int(repeats.sum()))


def first_pairs(tables: PairTables, number: int) -> PairTables:
    """The first pairs of every source: so many altogether, and of each in proportion to its pairs.

    Args:
        number: at least 1; all pairs, if there are fewer.
    """
    sizes = np.array([len(table) for table in tables.tables])
    total = int(sizes.sum())
    if total <= number:
        return tables
    taken, rests = np.divmod(sizes * number, total)
    # What rounding down has left goes to the largest remainders.
    taken[np.argsort(-rests, kind="stable")[: number - int(taken.sum())]] += 1
    kept = np.concatenate([np.arange(size) < most for size, most in zip(sizes, taken, strict=True)])
    return dataclasses.replace(_keep(tables, kept), beyond_limit=total - number)


def shared_prompts(tables: PairTables, held_out: PairTables) -> int:
    """Number of pairs whose prompt held-out pairs have as well."""
    return int(np.isin(_identities(tables)[:, 0], _identities(held_out)[:, 0]).sum())


def _identities(tables: PairTables) -> NDArray[np.uint64]:
    """Hashes of prompt, chosen and rejected answer of each selected pair, (len, 3)."""
    return np.concatenate([table.identities.reshape(-1, 3)[table.selected] for table in tables.tables])


def _keep(tables: PairTables, kept: NDArray[np.bool_]) -> PairTables:
    ends = np.cumsum([len(table) for table in tables.tables])[:-1]
    parts = zip(tables.tables, np.split(kept, ends), strict=True)
    return dataclasses.replace(
        tables, tables=tuple(dataclasses.replace(table, selected=table.selected[mask]) for table, mask in parts)
    )
