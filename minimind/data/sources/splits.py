"""The splits of a folder with data files, by the rules of Hugging Face's datasets.

    folder, README.md with `configs:` -> splits_of -> name of each split -> its files

The files are found by name only; what they hold is looked at elsewhere.
"""

from __future__ import annotations

import dataclasses
import glob
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from minimind.errors import DataError

Result = TypeVar("Result")
_README = "README.md"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Splits:
    """The files of a folder.

    Attributes:
        files: name of each split -> its files, in order.
        loose: files in no split, without those that are hidden or that describe the data set.
        config: name of the configuration that they are of; None if the folder's README.md has none.
        configs: names of all configurations.
    """

    files: Mapping[str, list[Path]]
    loose: list[Path]
    config: str | None
    configs: list[str]


def splits_of(folder: Path, config: str | None, name: str) -> Splits:
    """The splits of a folder.

    Args:
        config: name of a configuration; None: the default one.
        name: what messages call the folder.

    Raises:
        DataError: there is no such configuration, several and no default, or the README.md cannot be used.
    """
    # Imported here, since files alone need no datasets.
    from datasets.data_files import EmptyDatasetError, get_data_patterns, sanitize_patterns

    configs = _configs(folder)
    config = _chosen_config(configs, config, name)
    chosen = {} if config is None else configs[config]
    base = folder / str(chosen.get("data_dir") or "")
    if ".." in base.relative_to(folder).parts:
        raise DataError(f"{folder / _README}: a configuration leaves the folder by 'data_dir'")
    try:
        patterns = (
            sanitize_patterns(chosen["data_files"])
            if chosen.get("data_files") is not None
            else get_data_patterns(_escaped(base))
        )
    except EmptyDatasetError:
        patterns = {}
    except ValueError as error:
        raise DataError(f"{name}: {error}") from error
    files = {
        str(split): list(dict.fromkeys(path for one in some for path in _matches(folder, base, str(one))))
        for split, some in patterns.items()
    }
    taken = {path for some in files.values() for path in some}
    # Of several configurations the others have files too.
    others = len(configs) > 1
    loose = [] if others else [path for path in _matches(folder, folder, "**") if path not in taken]
    files = {split: some for split, some in files.items() if some}
    return Splits(files=files, loose=loose, config=config, configs=list(configs))


def _matches(folder: Path, base: Path, pattern: str) -> list[Path]:
    """The files below a folder that match one of datasets' patterns."""
    from datasets.data_files import resolve_pattern

    if "://" in pattern or Path(pattern).is_absolute() or ".." in Path(pattern).parts:
        raise DataError(f"{folder / _README}: the file {pattern!r} of a configuration is not in the folder")
    try:
        found = resolve_pattern(pattern, _escaped(base))
    except FileNotFoundError:
        return []
    return [base / Path(path).relative_to(os.path.realpath(base)) for path in found]


def _escaped(folder: Path) -> str:
    """A folder's path in patterns. datasets leaves out hidden folders, but not above an absolute path."""
    return glob.escape(os.path.realpath(folder))


def _configs(folder: Path) -> Mapping[str, Any]:
    """The configurations that a folder's README.md has, by name."""
    path = folder / _README
    if not path.is_file():
        return {}
    with path.open("rb") as file:
        # A README without a head says nothing about files.
        if file.read(3) != b"---":
            return {}
    from datasets.utils.metadata import MetadataConfigs
    from huggingface_hub import DatasetCard

    configs: Mapping[str, Any] = _or_error(
        lambda: MetadataConfigs.from_dataset_card_data(DatasetCard.load(path).data), path
    )
    return configs


def _or_error(action: Callable[[], Result], path: Path) -> Result:
    import yaml

    try:
        return action()
    except (ValueError, TypeError, KeyError, AttributeError, yaml.YAMLError, RecursionError) as error:
        shown = " ".join(str(error).split())[:200]
        raise DataError(f"{path}: its head, which says what the data files are, cannot be read ({shown})") from error


def _chosen_config(configs: Mapping[str, Any], config: str | None, name: str) -> str | None:
    if config is not None:
        if config not in configs:
            has = f"it has {', '.join(configs)}" if configs else "it has none"
            raise DataError(f"{name}: there is no configuration {config}; {has}")
        return config
    if len(configs) <= 1:
        return next(iter(configs), None)
    defaults = [one for one, values in configs.items() if values.get("default") or one == "default"]
    if not defaults:
        raise DataError(
            f"{name}: it has the configurations {', '.join(configs)}, none of them the default; say which, as in "
            f"{name}:{next(iter(configs))}/train"
        )
    return defaults[0]
