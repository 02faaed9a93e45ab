"""From what a user gives to the sources that it names.

    "a.jsonl", "b/*.parquet:2" -> find_sources -> Source of each file, with the weight of its word

A word is a file or a pattern of files, and perhaps a weight behind a colon. What exists under the whole word
wins: a file `a:2` is a file, not `a` with the weight 2.
"""

from __future__ import annotations

import dataclasses
import glob
import os
import re
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

from minimind.data.sources.source import Source, open_source
from minimind.errors import DataError

_WEIGHT = re.compile(r"(?P<rest>.+):(?P<weight>\d{1,9}(?:\.\d{0,9})?|\.\d{1,9})", re.ASCII | re.DOTALL)
# More passes over everything are what --epochs is for.
_LEAST_WEIGHT, _MOST_WEIGHT = Fraction(1, 1000), 100


def find_sources(words: Sequence[str]) -> list[Source]:
    """The sources of all words, in their order; files of a pattern by name.

    Raises:
        DataError: a word names nothing, or a file that holds no rows; or two words name the same file.
    """
    found: list[Source] = []
    given: dict[Path, str] = {}
    for word in words:
        rest, weight = _split(word)
        if not _LEAST_WEIGHT <= weight <= _MOST_WEIGHT:
            raise DataError(
                f"{word}: the weight is not between {float(_LEAST_WEIGHT)} and {_MOST_WEIGHT}; it says how often an "
                "epoch takes each pair"
            )
        # A name without a file fails when it is opened.
        for path in _paths_of(rest) or [Path(rest)]:
            if (place := path.resolve()) in given:
                raise DataError(
                    f"{path} is given twice, in {given[place]} and in {word}; a weight, as in {path}:2, says so"
                )
            given[place] = word
            found.append(dataclasses.replace(open_source(path), word=word, weight=weight))
    return found


def local_paths(words: Sequence[str]) -> list[Path]:
    """The files that words name on this machine, without reading them; of a word that names none, its own path."""
    rests = [_split(word)[0] for word in words]
    return [path for rest in rests for path in _paths_of(rest) or [Path(rest)]]


def _split(word: str) -> tuple[str, Fraction]:
    """A word without its weight, and the weight."""
    match = _WEIGHT.fullmatch(word)
    if match is None or os.path.exists(word):
        return word, Fraction(1)
    return match["rest"], Fraction(match["weight"])


def _paths_of(name: str) -> list[Path]:
    """The file of this name, or the files that match this pattern, by name; none if there are none."""
    if os.path.exists(name):
        return [Path(name)]
    matches = glob.glob(name, recursive=True) if glob.has_magic(name) else []
    return [Path(match) for match in sorted(matches) if not os.path.isdir(match)]
