"""Held-out data in sets with names, each evaluated by itself: `--eval_data_path zh=a.jsonl en=b.jsonl`.

    words -> named_words -> {set: words} -> plain_words -> sources -> PairTables -> set_ranges -> {set: its indices}

Words without a name are one set without a name. As everywhere, what exists under the whole word wins: a file
`a=b.jsonl` is a file.
"""

from __future__ import annotations

import dataclasses
import glob
import os
import re
from collections.abc import Mapping, Sequence

from minimind.data.narrowing import without_duplicates
from minimind.data.pair_tables import PairTables

_NAMED = re.compile(r"(?P<name>[\w.-]+)=(?P<rest>.+)", re.DOTALL)


def named_words(words: Sequence[str]) -> Mapping[str, tuple[str, ...]]:
    """Name of a set -> its words without the name, sets and words in the order of the words; "" is the set without."""
    sets: dict[str, tuple[str, ...]] = {}
    for word in words:
        match = _NAMED.fullmatch(word)
        exists = os.path.exists(word) or (glob.has_magic(word) and glob.glob(word, recursive=True))
        name, rest = ("", word) if match is None or exists else (match["name"], match["rest"])
        sets[name] = (*sets.get(name, ()), rest)
    return sets


def plain_words(words: Sequence[str]) -> tuple[str, ...]:
    """All words without the names of their sets, set after set."""
    return tuple(word for of_set in named_words(words).values() for word in of_set)


def set_ranges(tables: PairTables, words: Sequence[str]) -> Mapping[str, range]:
    """Name of each set -> the indices of its pairs in the tables of all sets.

    Args:
        tables: of the sources of `plain_words`.
    """
    ranges, start = {}, 0
    for name, of_set in named_words(words).items():
        size = sum(len(table) for table in tables.tables if table.source.word in of_set)
        ranges[name] = range(start, start := start + size)
    return ranges


def without_duplicates_in_sets(tables: PairTables, words: Sequence[str]) -> PairTables:
    """The first of equal pairs of each set. A pair of two sets stays in both."""
    parts = [
        without_duplicates(PairTables(tables=tuple(table for table in tables.tables if table.source.word in of_set)))
        for of_set in named_words(words).values()
    ]
    return dataclasses.replace(
        tables,
        tables=tuple(table for part in parts for table in part.tables),
        duplicates=sum(part.duplicates for part in parts),
    )
