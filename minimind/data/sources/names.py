"""From what a user gives to the sources that it names.

    "a.jsonl", "b/*.parquet:2", "folder:test", "owner/name@v1" -> find_sources -> Source of each, with its word's weight

A word is a file, a pattern of files, a folder or a data set of the hub, perhaps with a split, and perhaps with a weight
behind a colon. What exists under the whole word wins: a file `a:2` is a file, not `a` with the weight 2. What is behind
the last colon is a weight if it is a number, else a split: `folder:2024:1` is the split 2024.
"""

from __future__ import annotations

import dataclasses
import glob
import itertools
import os
import re
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path

from minimind.data.sources.folders import SplitFiles, files_of_folder, is_data_name
from minimind.data.sources.hub import caches, files_of_hub_set, how_to_get, parse_name
from minimind.data.sources.source import Source, open_source, open_split
from minimind.errors import DataError

_WEIGHT = re.compile(r"(?P<rest>.+):(?P<weight>\d{1,9}(?:\.\d{0,9})?|\.\d{1,9})", re.ASCII | re.DOTALL)
_SPLIT = re.compile(r"(?P<folder>.+):(?P<split>[\w.-]+(?:/[\w.-]+)?)", re.ASCII | re.DOTALL)
# More passes over everything are what --epochs is for.
_LEAST_WEIGHT, _MOST_WEIGHT = Fraction(1, 1000), 100


def find_sources(words: Sequence[str]) -> list[Source]:
    """The sources of all words, in their order; files of a pattern or a folder by name.

    Raises:
        DataError: a word names nothing, or a file that holds no rows; or two words name the same file.
    """
    found: list[Source] = []
    given: dict[Path, str] = {}
    for word in words:
        rest, weight = _without_weight(word)
        if not _LEAST_WEIGHT <= weight <= _MOST_WEIGHT:
            raise DataError(
                f"{word}: the weight is not between {float(_LEAST_WEIGHT)} and {_MOST_WEIGHT}; it says how often an "
                "epoch takes each pair"
            )
        for source in _sources_of(rest):
            for path in {file.resolve(): file for file in source.files}.values():
                if (place := path.resolve()) in given:
                    raise DataError(
                        f"{path} is given twice, in {given[place]} and in {word}; a weight, as in {rest}:2, says so"
                    )
                given[place] = word
            found.append(dataclasses.replace(source, word=word, weight=weight))
    return found


def local_paths(words: Sequence[str]) -> list[Path]:
    """The files that words name on this machine; of a word that names none, its own path. Rows are not read."""
    paths: list[Path] = []
    for word in words:
        rest = _without_weight(word)[0]
        try:
            paths += [file for part in _files_of(rest) for file in part.files]
        except DataError:
            paths.append(Path(rest))
    return paths


def _without_weight(word: str) -> tuple[str, Fraction]:
    """A word without its weight, and the weight."""
    match = _WEIGHT.fullmatch(word)
    if match is None or os.path.exists(word):
        return word, Fraction(1)
    return match["rest"], Fraction(match["weight"])


def _sources_of(name: str) -> Iterator[Source]:
    for part in _files_of(name):
        if part.is_one:
            yield open_split(part.name, part.files, part.note)
            continue
        # What a folder has besides is said once.
        notes = itertools.chain([part.note], itertools.repeat(""))
        for path, note in zip(part.files, notes, strict=False):
            yield dataclasses.replace(open_source(path), note=note)


def _files_of(name: str) -> list[SplitFiles]:
    """What a word without its weight names."""
    if not name:
        raise DataError("an empty text is no name of a file; is a variable of the shell empty?")
    if os.path.isdir(name):
        return [files_of_folder(Path(name), None)]
    if not os.path.exists(name):
        matches = glob.glob(name, recursive=True) if glob.has_magic(name) else []
        if matches := [path for path in matches if not os.path.isdir(path)]:
            return [SplitFiles(name=name, files=tuple(map(Path, sorted(matches))), is_one=False)]
        match = _SPLIT.fullmatch(name)
        if match is not None and os.path.isdir(match["folder"]):
            return [files_of_folder(Path(match["folder"]), match["split"])]
        if (wanted := parse_name(name)) is not None:
            if (found := files_of_hub_set(wanted)) is not None:
                return [found]
            # A path to a file is no data set of the hub.
            if not is_data_name(wanted.name) and not os.path.exists(wanted.name.partition("/")[0]):
                raise DataError(
                    f"{name}: there is no such file or folder, and no data set of this name in the hub's caches "
                    f"({caches()}); to download it: {how_to_get(wanted)}"
                )
    # A name without a file fails when it is opened.
    return [SplitFiles(name=name, files=(Path(name),), is_one=False)]
