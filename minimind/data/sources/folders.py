"""Folders of data: which files are the rows of one split, and in which order.

    folder, "test" -> files_of_folder -> SplitFiles

A folder was written by `save_to_disk` of Hugging Face's datasets, or has data files. Which data files are which split
is decided by datasets' own rules: names such as `test.jsonl` and `data/train-00000-of-00002.parquet`, or the head of a
README.md.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from minimind.data.sources.content import Kind
from minimind.data.sources.source import TAKEN, kind_of_file
from minimind.data.sources.splits import splits_of
from minimind.errors import DataError

TRAIN = "train"
# What `save_to_disk` writes beside the Arrow files of a DatasetDict and of a Dataset.
_DICT, _STATE, _INFO = "dataset_dict.json", "state.json", "dataset_info.json"
# Files with these endings hold rows, or something is wrong with them; what others hold decides.
_DATA_NAME = re.compile(
    r".+\.(?:jsonl?|ndjson|csv|tsv|parquet|arrow|feather)(?:\.(?:gz|zst|xz|bz2))?", re.IGNORECASE | re.DOTALL
)
_SHARD = re.compile(r"(?P<start>.*)-(?P<number>\d{5})-of-(?P<total>\d{5})(?P<end>.*)", re.DOTALL)
_NAMED = 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class SplitFiles:
    """The files of one split.

    Attributes:
        name: what messages call it.
        files: at least one.
        is_one: rows are counted through all files; otherwise each file is a source of its own.
        note: what of the folder is not read; empty if nothing.
    """

    name: str
    files: tuple[Path, ...]
    is_one: bool
    note: str = ""


def files_of_folder(folder: Path, split: str | None, name: str | None = None) -> SplitFiles:
    """The files of one split of a folder.

    Args:
        split: its name, perhaps with that of a configuration and a slash in front; None: `train`.
        name: what messages call the folder; None: its path.

    Raises:
        DataError: there is no such split, or the folder has no data, is incomplete or damaged.
    """
    name = name or str(folder)
    try:
        if (folder / _DICT).is_file():
            return _saved_dict(folder, split, name)
        if (folder / _STATE).is_file() and (folder / _INFO).is_file():
            return _saved(folder, split, name)
        return _data_files(folder, split, name)
    except OSError as error:
        raise DataError(f"{name}: cannot read the folder ({error})") from error


def chosen_split(name: str, splits: Sequence[str], split: str | None, in_no_split: Sequence[str] = ()) -> str:
    """The split that is asked for, or `train`.

    Args:
        in_no_split: names of data files that are in none.

    Raises:
        DataError: the folder does not have it.
    """
    wanted = split or TRAIN
    if wanted in splits:
        return wanted
    loose = f"; in no split is {listed(in_no_split)}" if in_no_split else ""
    if split is None:
        raise DataError(
            f"{name}: it has no split {TRAIN}, but {', '.join(splits)}; say which, as in {name}:{splits[0]}{loose}"
        )
    raise DataError(f"{name}: it has no split {split}, but {', '.join(splits)}{loose}")


def _saved_dict(folder: Path, split: str | None, name: str) -> SplitFiles:
    splits = _json_object(folder / _DICT).get("splits")
    if not isinstance(splits, list) or not splits or not all(isinstance(one, str) for one in splits):
        raise DataError(f"{folder / _DICT}: it names no splits")
    chosen = chosen_split(name, splits, split)
    found = _saved(folder / chosen, None, f"{name}, split {chosen}")
    return dataclasses.replace(found, note=not_read(other_splits=[one for one in splits if one != chosen]))


def _saved(folder: Path, split: str | None, name: str) -> SplitFiles:
    """Files of a Dataset that `save_to_disk` wrote."""
    state = _json_object(folder / _STATE)
    own = state.get("_split")
    if split is not None and split != own:
        has = own or "none"
        raise DataError(
            f"{name}: save_to_disk wrote one data set into it, so there is no split to choose; it has {has}"
        )
    files = state.get("_data_files")
    if not isinstance(files, list) or not all(isinstance(one, dict) for one in files):
        raise DataError(f"{folder / _STATE}: it does not say which files the data set has; save the data set again")
    if state.get("_indices_data_files"):
        raise DataError(f"{name}: an old version of datasets saved a selection of its rows; save it again")
    names = [str(one.get("filename")) for one in files]
    if strange := [one for one in names if Path(one).name != one]:
        raise DataError(f"{folder / _STATE}: {strange[0]!r} is no name of a file in the folder")
    if missing := [one for one in names if not (folder / one).is_file()]:
        raise DataError(f"{name}: incomplete: {listed(missing)} of {len(names)} files is missing")
    if not names:
        raise DataError(f"{name}: a data set without a row")
    return SplitFiles(name=name, files=tuple(folder / one for one in names), is_one=True)


def _json_object(path: Path) -> Mapping[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read ({error}); save the data set again") from error
    if not isinstance(value, dict):
        raise DataError(f"{path}: no JSON object; save the data set again")
    return value


def _data_files(folder: Path, split: str | None, name: str) -> SplitFiles:
    config, _, wanted = (split or "").rpartition("/")
    splits = splits_of(folder, config or None, name)
    every = dict.fromkeys([*(path for files in splits.files.values() for path in files), *splits.loose])
    if saved := [path.parent for path in every if path.name == _STATE and (path.parent / _INFO).is_file()]:
        raise DataError(
            f"{name}: save_to_disk wrote data sets into folders of it; give them one by one: {listed(saved)}"
        )
    data = {one: [path for path in files if _is_data(path)] for one, files in splits.files.items()}
    data = {one: files for one, files in data.items() if files}
    if not data:
        has = f"has {listed(sorted(path.name for path in every))}" if every else "is empty"
        raise DataError(f"{name}: no file in this folder holds rows ({TAKEN}); it {has}")
    loose = [str(path.relative_to(folder)) for path in splits.loose if _is_data(path)]
    chosen = chosen_split(name, list(data), wanted or None, loose)
    check_complete(name, data[chosen])
    part = f", configuration {splits.config}" if len(splits.configs) > 1 else ""
    return SplitFiles(
        name=f"{name}{part}, split {chosen}",
        files=tuple(data[chosen]),
        is_one=False,
        note=not_read(
            other_splits=[one for one in data if one != chosen],
            in_no_split=loose,
            not_data=sorted(str(path.relative_to(folder)) for path in every if not _is_data(path)),
            other_configs=[one for one in splits.configs if one != splits.config],
        ),
    )


def is_data_name(name: str) -> bool:
    """Whether a file of this name is meant to hold rows."""
    return _DATA_NAME.fullmatch(name) is not None


def _is_data(path: Path) -> bool:
    """Whether a file of a folder is meant to hold rows."""
    if is_data_name(path.name):
        return True
    try:
        # Prose with a comma in it may look like a table.
        return kind_of_file(path) is not Kind.CSV
    except DataError:
        return False


def check_complete(name: str, files: Iterable[Path]) -> None:
    """Check that of files which are numbered, as in `-00001-of-00004`, none is missing.

    Raises:
        DataError: one is.
    """
    groups: dict[tuple[Path, str, str, int], set[int]] = {}
    for path in files:
        if match := _SHARD.fullmatch(path.name):
            group = (path.parent, match["start"], match["end"], int(match["total"]))
            groups.setdefault(group, set()).add(int(match["number"]))
    for (_, start, end, total), numbers in groups.items():
        missing = [number for number in range(total) if number not in numbers]
        if missing:
            first = f"{start}-{missing[0]:05d}-of-{total:05d}{end}"
            raise DataError(f"{name}: incomplete: {len(missing)} of {total} files are missing, the first is {first}")


def not_read(
    *,
    other_splits: Sequence[str] = (),
    other_configs: Sequence[str] = (),
    in_no_split: Sequence[str] = (),
    not_data: Sequence[str] = (),
) -> str:
    """What of a data set is not read, for the first lines of a run; empty if everything is."""
    parts = [
        f"{what} {listed(names)}"
        for what, names in (
            ("other splits:", other_splits),
            ("other configurations:", other_configs),
            ("data files in no split:", in_no_split),
            ("files without rows:", not_data),
        )
        if names
    ]
    return f"not read: {'; '.join(parts)}" if parts else ""


def listed(names: Iterable[object]) -> str:
    """The first of some names, and the number of the others."""
    shown = [str(name) for name in names]
    more = f" and {len(shown) - _NAMED} more" if len(shown) > _NAMED else ""
    return f"{', '.join(shown[:_NAMED])}{more}"
