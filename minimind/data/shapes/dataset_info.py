"""LLaMA-Factory's `dataset_info.json`: which columns and names of roles a data file has.

dataset_info.json, a data file -> dataset_info -> DatasetInfo -> DatasetInfo.renamed: a row under the usual names
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from minimind.config import DataConfig
from minimind.data.messages import listed
from minimind.data.shapes.turns import FUNCTION_CALL, ROLES, TurnNames
from minimind.data.sources import RowError
from minimind.errors import DataError

FILE_NAME = "dataset_info.json"
# What the job's rows are -> formatting -> name of the shape.
KINDS: Mapping[str, Mapping[str, str]] = {
    "pairs": {"alpaca": "alpaca", "sharegpt": "sharegpt", "openai": "sharegpt"},
    "conversations": {"alpaca": "instructions", "sharegpt": "conversations", "openai": "conversations"},
    "texts": {"alpaca": "texts"},
}
# Key of `columns` -> the usual name of the column, by shape.
_ALONE = {name: name for name in ("system", "tools", "images", "videos", "audios")}
_COMMON = {**_ALONE, **{name: name for name in ("chosen", "rejected", "kto_tag")}}
_ALPACA = {"prompt": "instruction", "query": "input", "response": "output", "history": "history"}
_COLUMNS = {
    "alpaca": {**_COMMON, **_ALPACA},
    "sharegpt": {**_COMMON, "messages": "conversations"},
    "instructions": {**_ALONE, **_ALPACA},
    "conversations": {**_ALONE, "messages": "conversations"},
    "texts": {"prompt": "text"},
}
_NEEDED = ("instruction", "conversations", "chosen", "rejected", "kto_tag", "text")
# Shape of rows with one answer, whose label is in the column of this key.
_LABEL, _LABELLED = "kto_tag", "unpaired"
# Key of `tags` -> role of a message.
_ROLE_TAGS = {
    "user_tag": "user",
    "assistant_tag": "assistant",
    "observation_tag": "tool",
    "function_tag": FUNCTION_CALL,
    "system_tag": "system",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class DatasetInfo:
    """The entry of a data file.

    Attributes:
        origin: the file and the entry, for messages.
        shape: name of the rows' shape in `SHAPES`.
        columns: usual name of a column -> its name in the file; None: the file has none.
        names: how turns are written.
    """

    origin: str
    shape: str
    columns: Mapping[str, str | None]
    names: TurnNames

    def key(self) -> list[Any]:
        """What the pairs depend on, as JSON values."""
        return [self.shape, dict(self.columns), dataclasses.asdict(self.names)]

    def renamed(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """A row with the usual names of its columns.

        Raises:
            RowError: the row lacks a column of the conversation.
        """
        for usual, name in self.columns.items():
            if name is not None and name not in row and usual in _NEEDED:
                raise RowError(f"it names the column {name!r} for {usual!r}, which the row does not have")
        sources = set(self.columns.values())
        renamed = {usual: row[name] for usual, name in self.columns.items() if name is not None and name in row}
        for name, value in row.items():
            if name not in sources:
                # A column that the entry does not mean keeps a name under which nothing reads it.
                renamed[name if name not in self.columns else f"{name}, not in {FILE_NAME}"] = value
        return renamed


def dataset_info(files: Sequence[Path], config: DataConfig) -> DatasetInfo | None:
    """The entry of the files of one source, in the file of --dataset_info or in the one beside them.

    Returns:
        None if --data_format names a shape, if there is no such file, or, where none was given, if it has no entry.

    Raises:
        DataError: the file cannot be read, the entry cannot be used, or the data files have different entries.
    """
    if config.data_format != "auto":
        return None
    given = Path(config.dataset_info) if config.dataset_info else None
    found = [_entry(file, given, config.described_as) for file in files]
    if len({json.dumps(one and one.key()) for one in found}) > 1:
        raise DataError(f"{files[0]} and others are read together, but {FILE_NAME} has different entries for them")
    return found[0] if found else None


def _entry(file: Path, given: Path | None, kind: str) -> DatasetInfo | None:
    path = given or file.parent / FILE_NAME
    if given is None and not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from error
    entries = content.items() if isinstance(content, dict) else ()
    named = {name: entry for name, entry in entries if isinstance(entry, dict) and _names(entry, path, file)}
    if not named:
        if given is None:
            return None
        raise DataError(f'{path}: no entry has the "file_name" {file.name}')
    found = [_read(f"{path}, entry {name!r}", entry, kind) for name, entry in named.items()]
    if len({json.dumps(one.key()) for one in found}) > 1:
        raise DataError(f"{path}: the entries {listed(named)} read {file.name} in different ways; keep one of them")
    return found[0]


def _names(entry: Mapping[str, Any], path: Path, file: Path) -> bool:
    """Whether an entry is about a file. In another folder than the data only the file's own name is compared."""
    name = entry.get("file_name")
    if not isinstance(name, str):
        return False
    return (path.parent / name).resolve() == file.resolve() or (
        path.resolve().parent not in file.resolve().parents and Path(name).name == file.name
    )


def _read(origin: str, entry: Mapping[str, Any], kind: str) -> DatasetInfo:
    formatting, shapes = entry.get("formatting", "alpaca"), KINDS[kind]
    if not isinstance(formatting, str) or formatting not in shapes:
        raise DataError(f'{origin}: unknown "formatting" {formatting!r}; known are {", ".join(shapes)}')
    if entry.get("num_samples"):
        raise DataError(f'{origin}: "num_samples" is not read; remove it, and limit the run by --max_steps')
    columns, tags = (_texts(origin, name, entry.get(name)) for name in ("columns", "tags"))
    shape = _shape(origin, shapes[formatting], kind, entry, is_labelled=bool(columns.get(_LABEL)))
    usual = _COLUMNS[shapes[formatting]]
    if unknown := [name for name in columns if name not in usual]:
        raise DataError(f'{origin}: "columns" has {listed(unknown)}, which {formatting} does not have')
    if unknown := [name for name in tags if name not in {"role_tag", "content_tag", *_ROLE_TAGS}]:
        raise DataError(f'{origin}: "tags" has {listed(unknown)}, which is no tag')
    plain = ("role", "content") if formatting == "openai" else ("from", "value")
    return DatasetInfo(
        origin=origin,
        shape=shape,
        columns={usual[name]: column or None for name, column in columns.items()},
        names=TurnNames(
            role=tags.get("role_tag", plain[0]),
            content=tags.get("content_tag", plain[1]),
            roles={**ROLES, **{tags[name]: role for name, role in _ROLE_TAGS.items() if name in tags}},
        ),
    )


def _shape(origin: str, shape: str, kind: str, entry: Mapping[str, Any], *, is_labelled: bool) -> str:
    """The shape of the rows: that of the formatting, or that of answers with labels."""
    if kind != "pairs":
        if is_labelled or entry.get("ranking"):
            what = f'a column of "{_LABEL}"' if is_labelled else '"ranking"'
            raise DataError(f"{origin}: it has {what}: its rows judge answers; they are for launch/train_dpo.py")
        return shape
    if is_labelled:
        if entry.get("ranking"):
            raise DataError(f'{origin}: "ranking" is for pairs, "{_LABEL}" for single answers; remove one of them')
        return _LABELLED
    if entry.get("ranking") is not True:
        raise DataError(
            f'{origin}: it has no "ranking": true, so its rows have one answer each; a preference has two, or a label '
            f'in the column of "{_LABEL}"'
        )
    return shape


def _texts(origin: str, name: str, value: Any) -> dict[str, str]:
    """An object of texts, without those that are null."""
    if not isinstance(value, dict | None) or not all(isinstance(text, str | None) for text in (value or {}).values()):
        raise DataError(f'{origin}: "{name}" is not an object of texts')
    return {key: text for key, text in (value or {}).items() if text is not None}
