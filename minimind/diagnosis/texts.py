"""The texts of single pairs, read again from the files that the run has read.

    places of pairs (source, line, part), how rows are read -> read_pairs -> PreferenceRow of each

A file that has changed since the run is not read: its lines may be other rows.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from minimind.config.data import DataConfig
from minimind.data.messages import Message
from minimind.data.rows import PreferenceRow
from minimind.data.shapes import parse_rows
from minimind.data.shapes.options import options_of_files
from minimind.data.sources import RowError, Source
from minimind.diagnosis.ledger import Ledger, LedgerSource
from minimind.errors import DataError

# Where a pair is from: place of its source in a ledger, line, and place among the pairs of the row.
Place = tuple[int, int, int]


# Why the rows of a file cannot be shown: templates, which language.py translates.
GONE = "{file} is not there any more"
CHANGED = "{file} has changed since the run"
UNREADABLE = "{file} cannot be read as the run read it ({error})"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Obstacle:
    """Why the rows of a source cannot be read any more.

    Attributes:
        reason: GONE, CHANGED or UNREADABLE.
        values: of its places.
    """

    reason: str
    values: Mapping[str, str]

    def __str__(self) -> str:
        return self.reason.format(**self.values)


def places_of(rows: Ledger) -> list[Place]:
    """Where the pairs of a ledger's rows are from."""
    return list(zip(rows.source.tolist(), rows.line.tolist(), rows.part.tolist(), strict=True))


def data_flags(settings: Mapping[str, Mapping[str, Any]]) -> DataConfig:
    """The flags that say how rows are read, from the settings in run.json."""
    names = ("data_format", "pairing", "score_gap", "dataset_info")
    return DataConfig(**{name: settings[name]["value"] for name in names if name in settings})


def obstacle(source: LedgerSource, data: DataConfig) -> Obstacle | None:
    """Why the rows of a source cannot be read any more; None if they can."""
    for file, state in zip(source.files, zip(source.sizes, source.times, strict=True), strict=True):
        try:
            now = Path(file).stat()
        except OSError:
            return Obstacle(reason=GONE, values={"file": file})
        if (now.st_size, now.st_mtime_ns) != state:
            return Obstacle(reason=CHANGED, values={"file": file})
    try:
        options_of_files(data, tuple(map(Path, source.files)))
    except DataError as error:
        return Obstacle(reason=UNREADABLE, values={"file": source.name, "error": str(error)})
    return None


def read_pairs(
    sources: Sequence[LedgerSource], places: Sequence[Place], data: DataConfig
) -> dict[Place, PreferenceRow]:
    """The pairs at these places, as far as their files can be read and are those of the run."""
    found: dict[Place, PreferenceRow] = {}
    for number, source in enumerate(sources):
        wanted: dict[int, list[int]] = {}
        for of_source, line, part in places:
            if of_source == number:
                wanted.setdefault(line, []).append(part)
        if wanted and not obstacle(source, data):
            for (line, part), row in _read(source, wanted, data).items():
                found[number, line, part] = row
    return found


def _read(source: LedgerSource, wanted: Mapping[int, Sequence[int]], data: DataConfig) -> dict[tuple[int, int], Any]:
    files = tuple(map(Path, source.files))
    found: dict[tuple[int, int], Any] = {}
    last = max(wanted)
    options = options_of_files(data, files)
    # What the run could read it read; a file that is damaged now has no more to show.
    with contextlib.suppress(DataError):
        for line, content in Source(name=source.name, files=files, unit=source.unit).rows():
            if line in wanted and not isinstance(content, RowError):
                with contextlib.suppress(RowError):
                    pairs = parse_rows(content, options)
                    found |= {(line, part): pairs[part] for part in wanted[line] if 0 <= part < len(pairs)}
            if line >= last:
                break
    return found


def prompt_of(row: PreferenceRow) -> list[Message]:
    """The messages that both conversations share."""
    shared = []
    for one, other in zip(row.chosen, row.rejected, strict=False):
        if one != other:
            break
        shared.append(one)
    return shared


def written(messages: Sequence[Message]) -> str:
    """Messages as a text for people: the role before each, unless it is a single answer."""
    texts = [str(message.get("content") or "") for message in messages]
    if len(messages) == 1 and messages[0].get("role") == "assistant":
        return texts[0]
    return "\n".join(f"{message.get('role')}: {text}" for message, text in zip(messages, texts, strict=True))
