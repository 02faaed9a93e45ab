"""Data sets of the Hugging Face hub, out of the caches of this machine.

    "owner/name:test@v1" -> parse_name -> HubName -> files_of_hub_set -> SplitFiles

`hf download` and `load_dataset` fill the hub's cache with the files of a data set; `load_dataset` also writes Arrow
files into datasets' own cache. Nothing is downloaded here.
"""

from __future__ import annotations

import dataclasses
import re
import tempfile
from pathlib import Path
from typing import Any

from minimind.data.sources.folders import SplitFiles, chosen_split, files_of_folder, listed, not_read
from minimind.errors import DataError

_WORD = re.compile(
    r"(?P<name>[\w.-]+/[\w.-]+)(?::(?P<split>[\w.-]+(?:/[\w.-]+)?))?(?:@(?P<revision>[\w.-]+(?:/[\w.-]+)*))?", re.ASCII
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class HubName:
    """What a user says about a data set of the hub.

    Attributes:
        name: owner/name.
        split: name of a split, perhaps with that of a configuration and a slash in front; None if not given.
        revision: branch, tag or commit; None if not given.
    """

    name: str
    split: str | None
    revision: str | None

    @property
    def shown(self) -> str:
        """The name in messages."""
        return self.name if self.revision is None else f"{self.name}@{self.revision}"


def parse_name(word: str) -> HubName | None:
    """The data set that a word names; None if it cannot be one."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    match = _WORD.fullmatch(word)
    if match is None or ".." in (match["revision"] or ""):
        return None
    try:
        validate_repo_id(match["name"])
    except HFValidationError:
        return None
    return HubName(name=match["name"], split=match["split"], revision=match["revision"])


def files_of_hub_set(wanted: HubName) -> SplitFiles | None:
    """The files of one split in the caches of this machine; None if the data set is in none of them.

    Raises:
        DataError: the data set is there, but not this split, or not as a whole.
    """
    snapshot = _snapshot(wanted)
    problem: DataError | None = None
    if snapshot is not None:
        try:
            return _of_snapshot(wanted, snapshot)
        except DataError as error:
            # `load_dataset` of a data set that has been converted leaves a README.md only.
            problem = error
    found = _of_prepared(wanted)
    if found is None and problem is not None:
        raise problem
    return found


def caches() -> str:
    """The folders that are looked into, for messages."""
    from datasets import config
    from huggingface_hub import constants

    return f"{constants.HF_HUB_CACHE} and {config.HF_DATASETS_CACHE}"


def how_to_get(wanted: HubName) -> str:
    """The command that downloads a data set."""
    revision = f" --revision {wanted.revision}" if wanted.revision else ""
    return f"hf download --repo-type dataset {wanted.name}{revision}"


def _snapshot(wanted: HubName) -> Path | None:
    """Folder of a revision in the hub's cache."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        # No pattern: whether files are missing is checked for those of the split alone.
        folder = snapshot_download(
            wanted.name, repo_type="dataset", revision=wanted.revision, local_files_only=True, allow_patterns=[]
        )
    except LocalEntryNotFoundError:
        return None
    return Path(folder)


def _of_snapshot(wanted: HubName, snapshot: Path) -> SplitFiles:
    missing = _missing_files(wanted, snapshot)
    try:
        found = files_of_folder(snapshot, wanted.split, wanted.shown)
    except DataError as error:
        if not missing:
            raise
        raise DataError(f"{error}; files of it are not in the local cache: {how_to_get(wanted)}") from error
    if missing:
        _check_whole(wanted, snapshot, found, missing)
    origin = f"from the hub's cache, commit {snapshot.name[:12]}, {_files(len(found.files))}"
    return dataclasses.replace(found, is_one=True, note="; ".join(filter(None, (origin, found.note))))


def _files(number: int) -> str:
    return f"{number} file{'' if number == 1 else 's'}"


def _missing_files(wanted: HubName, snapshot: Path) -> list[str]:
    """Files of a revision that are known and not there; none where the cache does not say what files there are."""
    try:
        from huggingface_hub import get_cached_repo_tree
        from huggingface_hub.errors import CachedRepoTreeNotFoundError
    except ImportError:
        return []
    try:
        tree = get_cached_repo_tree(wanted.name, repo_type="dataset", revision=snapshot.name)
    except CachedRepoTreeNotFoundError:
        return []
    return [file.path for file in tree if not (snapshot / file.path).exists()]


def _check_whole(wanted: HubName, snapshot: Path, found: SplitFiles, missing: list[str]) -> None:
    """Check that the split has no files that are missing.

    Raises:
        DataError: it has.
    """
    with tempfile.TemporaryDirectory(prefix="minimind-") as name:
        # The whole folder, with empty objects as files: what of it would be the split?
        whole = Path(name)
        there = [str(path.relative_to(snapshot)) for path in snapshot.rglob("*") if path.is_file()]
        for file in (*there, *missing):
            path = whole / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(
                (snapshot / file).read_bytes() if path.suffix in (".md", ".yaml") and file in there else b"{}"
            )
        expected = files_of_folder(whole, wanted.split, wanted.shown)
        lacking = [file for path in expected.files if (file := str(path.relative_to(whole))) in missing]
    if lacking:
        raise DataError(
            f"{wanted.shown}: {len(lacking)} of {len(expected.files)} files of the split are not in the local cache "
            f"({listed(lacking)}): {how_to_get(wanted)}"
        )


def _of_prepared(wanted: HubName) -> SplitFiles | None:
    """The Arrow files that `load_dataset` has written."""
    from datasets import DatasetInfo, config
    from datasets.naming import camelcase_to_snakecase, filenames_for_dataset_split

    owner, name = wanted.name.split("/")
    short = camelcase_to_snakecase(name)
    root = Path(config.HF_DATASETS_CACHE) / f"{owner}___{short}"
    asked_config, _, split = (wanted.split or "").rpartition("/")
    # root/configuration/version/commit/
    folders = [path.parent for path in root.glob("*/*/*/dataset_info.json")]
    if wanted.revision is not None:
        folders = [path for path in folders if path.name.startswith(wanted.revision)]
    if asked_config:
        folders = [path for path in folders if path.parts[-3] == asked_config]
    if not folders:
        return None
    configs = sorted({path.parts[-3] for path in folders})
    if len(configs) > 1 and "default" not in configs:
        raise DataError(
            f"{wanted.shown}: datasets' cache has the configurations {', '.join(configs)}; say which, as in "
            f"{wanted.name}:{configs[0]}/train"
        )
    chosen_config = "default" if len(configs) > 1 else configs[0]
    folder = max((path for path in folders if path.parts[-3] == chosen_config), key=lambda path: path.stat().st_mtime)
    splits = _splits_of(DatasetInfo, folder)
    chosen = chosen_split(wanted.shown, list(splits), split or None)
    files = filenames_for_dataset_split(str(folder), short, chosen, "arrow", splits[chosen])
    if absent := [Path(file).name for file in files if not Path(file).is_file()]:
        raise DataError(f"{folder}: incomplete: {listed(absent)} of {len(files)} files is missing; load it again")
    part = f", configuration {chosen_config}" if asked_config else ""
    others = not_read(other_splits=[one for one in splits if one != chosen])
    origin = f"from datasets' cache, {folder}"
    return SplitFiles(
        name=f"{wanted.shown}{part}, split {chosen}",
        files=tuple(map(Path, files)),
        is_one=True,
        note="; ".join(filter(None, (origin, others))),
    )


def _splits_of(info_class: Any, folder: Path) -> dict[str, list[int] | None]:
    """Name of each split -> the lengths of its Arrow files; None if it has one."""
    try:
        splits = info_class.from_directory(str(folder)).splits or {}
        return {str(name): split.shard_lengths for name, split in splits.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(f"{folder}: dataset_info.json cannot be read ({error}); load the data set again") from error
