"""The ledger of a run (--ledger 1): what a model thought of each pair, every time it met it, in parquet files.

    Rows (training: since the last save; an evaluation: all its pairs) -> append -> ledger/000001.parquet, ...
    ledger/ -> read -> Ledger: all rows, as arrays                       a resumed run: drop_after(step)

A file is whole or it is not there: each is written under another name first, and never again. Rows are ordered by step
and pair, so that a ledger does not depend on how the pairs were split over ranks.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minimind.durable import whole_file
from minimind.errors import DataError

FOLDER = "ledger"
# The set of the rows of training; a set of held-out pairs is called eval, or eval/NAME.
TRAIN, EVAL = "train", "eval"
# Values of a row: the loss of the pair, the margin of its rewards, summed log-probs of both answers under the policy
# and under the reference (the names are TRL's), and the number of tokens of each. NaN where a loss has no such value.
VALUES = (
    "loss",
    "margin",
    "chosen_logps",
    "rejected_logps",
    "ref_chosen_logps",
    "ref_rejected_logps",
    "chosen_tokens",
    "rejected_tokens",
)
_PLACES = ("step", "line", "part", "pair", "prompt_tokens")
_SOURCES = b"sources"


@dataclasses.dataclass(frozen=True, kw_only=True)
class LedgerSource:
    """A source of rows, so that they can be read again.

    Attributes:
        name: as messages call it.
        files: absolute paths.
        sizes, times: of the files in bytes, and when they were changed last, in nanoseconds. A label that somebody
            swaps changes no size.
        unit: what its rows are counted in, "line" or "row".
    """

    name: str
    files: tuple[str, ...]
    sizes: tuple[int, ...]
    times: tuple[int, ...]
    unit: str

    @classmethod
    def of(cls, name: str, files: Sequence[Path], unit: str) -> LedgerSource:
        """A source as its files are now; files that are not there have size -1."""
        found = [path.stat() if path.exists() else None for path in files]
        return cls(
            name=name,
            files=tuple(str(path.resolve()) for path in files),
            sizes=tuple(-1 if one is None else one.st_size for one in found),
            times=tuple(-1 if one is None else one.st_mtime_ns for one in found),
            unit=unit,
        )

    def place(self, line: int) -> str:
        """A row for messages: "pairs.jsonl, line 7"."""
        return f"{self.name}, {self.unit} {line}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ledger:
    """n rows of a ledger.

    Attributes:
        sources: that `source` counts.
        sets: names that `set` counts: TRAIN, EVAL, or EVAL/NAME.
        step: (n,) global step; that of an evaluation is the step before it.
        set, source: (n,) places in `sets` and in `sources`.
        line, part: (n,) number of the pair's row in its source, from 1, and place of the pair in that row, from 0;
            -1 if that is not known.
        pair: (n,) number of the pair in its set, the same each time.
        prompt_tokens: (n,) length of its prompt, before anything was cut.
        values: name in `VALUES` -> (n,) float32.
    """

    sources: tuple[LedgerSource, ...]
    sets: tuple[str, ...]
    step: NDArray[np.int64]
    set: NDArray[np.int64]
    source: NDArray[np.int64]
    line: NDArray[np.int64]
    part: NDArray[np.int64]
    pair: NDArray[np.int64]
    prompt_tokens: NDArray[np.int64]
    values: Mapping[str, NDArray[np.float32]]

    def __len__(self) -> int:
        return len(self.step)

    def where(self, chosen: NDArray[Any]) -> Ledger:
        """Some rows, by a mask or by their places."""
        arrays = {name: getattr(self, name)[chosen] for name in ("set", "source", *_PLACES)}
        return dataclasses.replace(self, **arrays, values={name: one[chosen] for name, one in self.values.items()})

    def of_set(self, name: str) -> Ledger:
        """The rows of a set; none if it has none."""
        return self.where(self.set == (self.sets.index(name) if name in self.sets else -1))

    def ordered(self) -> Ledger:
        """The rows by step, set and pair."""
        return self.where(np.lexsort((self.pair, self.set, self.step)))

    @property
    def evaluated(self) -> tuple[str, ...]:
        """The sets of held-out pairs."""
        return tuple(name for name in self.sets if name != TRAIN)


def joined(parts: Sequence[Ledger]) -> Ledger:
    """One ledger of several, at least one, whose sources and sets may differ."""
    sources = tuple(dict.fromkeys(source for part in parts for source in part.sources))
    sets = tuple(dict.fromkeys(name for part in parts for name in part.sets))

    def renumbered(own: NDArray[np.int64], names: Sequence[Any], all_names: Sequence[Any]) -> NDArray[np.int64]:
        # Each file counts its own sources and sets from 0.
        return np.array([all_names.index(name) for name in names], np.int64)[own]

    return Ledger(
        sources=sources,
        sets=sets,
        set=np.concatenate([renumbered(part.set, part.sets, sets) for part in parts]),
        source=np.concatenate([renumbered(part.source, part.sources, sources) for part in parts]),
        **{name: np.concatenate([getattr(part, name) for part in parts]) for name in _PLACES},
        values={name: np.concatenate([part.values[name] for part in parts]) for name in VALUES},
    )


def load_libraries() -> None:
    """Import what writing needs, which takes some tenths of a second once."""
    import pyarrow.parquet  # noqa: F401


def append(folder: Path, rows: Ledger) -> None:
    """Add a file with rows to a run's ledger, which need not exist.

    Raises:
        OSError: it cannot be written; the ledger is as it was.
    """
    (folder / FOLDER).mkdir(exist_ok=True)
    # A new file each time: parquet cannot be appended to, and a kill costs the newest file at most.
    numbers = [int(path.stem) for path in _files(folder)]
    _write(folder / FOLDER / f"{max(numbers, default=0) + 1:06d}.parquet", rows.ordered())


def read(folder: Path) -> Ledger:
    """All rows of a run's ledger.

    Raises:
        DataError: there is none, or a file is damaged.
    """
    files = _files(folder)
    if not files:
        raise DataError(f"{folder}: no ledger; train with --ledger 1")
    return joined([_read(path) for path in files])


def size(folder: Path) -> int:
    """Bytes of a run's ledger; 0 without one."""
    return sum(path.stat().st_size for path in _files(folder))


def sources(folder: Path) -> tuple[LedgerSource, ...]:
    """The sources of a run's ledger, without reading its rows; none without one.

    Raises:
        DataError: a file is damaged.
    """
    found = (source for path in _files(folder) for source in _described(path))
    return tuple(dict.fromkeys(found))


def drop_after(folder: Path, step: int) -> None:
    """Remove the rows after a global step: the run that resumes there writes them again.

    Raises:
        OSError: a file cannot be written.
        DataError: a file is damaged.
    """
    for path in _files(folder):
        rows = _read(path)
        kept = rows.step <= step
        if not kept.any():
            path.unlink()
        elif not kept.all():
            _write(path, rows.where(kept))


def _files(folder: Path) -> list[Path]:
    return sorted((folder / FOLDER).glob("[0-9]*.parquet"), key=lambda path: int(path.stem))


def _write(path: Path, rows: Ledger) -> None:
    # Imported here: a run without a ledger needs no pyarrow.
    import pyarrow as pa
    import pyarrow.parquet as pq

    # Places among texts instead of a text a row: sources are few, rows are many.
    names = [source.name for source in rows.sources]
    numbers = {"step": pa.int32(), "line": pa.int64(), "part": pa.int32(), "pair": pa.int64()}
    columns: dict[str, Any] = {
        "set": pa.DictionaryArray.from_arrays(_numbers(rows.set, pa.int32()), _texts(rows.sets)),
        "source": pa.DictionaryArray.from_arrays(_numbers(rows.source, pa.int32()), _texts(names)),
        **{
            name: _numbers(getattr(rows, name), kind) for name, kind in {**numbers, "prompt_tokens": pa.int32()}.items()
        },
        **{name: _numbers(rows.values[name], pa.float32()) for name in VALUES},
    }
    # In the schema's metadata, so that the report can ask for the sources without reading a row.
    sources = json.dumps([dataclasses.asdict(source) for source in rows.sources])
    table = pa.table(columns).replace_schema_metadata({_SOURCES: sources.encode()})
    with whole_file(path) as partial:
        pq.write_table(table, partial, compression="zstd")


def _numbers(values: NDArray[Any], kind: Any) -> Any:
    """A column of numbers. By its memory: `pyarrow.array` would import pandas, which takes half a second."""
    import pyarrow as pa

    return pa.Array.from_buffers(
        kind, len(values), [None, pa.py_buffer(np.ascontiguousarray(values, kind.to_pandas_dtype()))]
    )


def _texts(values: Sequence[str]) -> Any:
    """A column of texts, by its memory too."""
    import pyarrow as pa

    data = [value.encode() for value in values]
    ends = np.cumsum([0, *map(len, data)]).astype(np.int32)
    return pa.Array.from_buffers(pa.string(), len(data), [None, pa.py_buffer(ends), pa.py_buffer(b"".join(data))])


def _read(path: Path) -> Ledger:
    import pyarrow as pa
    import pyarrow.parquet as pq

    described = _described(path)
    try:
        table = pq.read_table(path)
        sets, of_sets = _numbered(table.column("set"))
        names, of_names = _numbered(table.column("source"))
        places = {source.name: number for number, source in enumerate(described)}
        return Ledger(
            sources=described,
            sets=sets,
            set=of_sets,
            source=np.array([places[name] for name in names], np.int64)[of_names],
            **{name: table.column(name).to_numpy().astype(np.int64) for name in _PLACES},
            values={name: table.column(name).to_numpy().astype(np.float32) for name in VALUES},
        )
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError) as error:
        raise _damaged(path, error) from error


def _described(path: Path) -> tuple[LedgerSource, ...]:
    """The sources that a file names."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return tuple(
            LedgerSource(
                name=one["name"],
                files=tuple(one["files"]),
                sizes=tuple(one["sizes"]),
                times=tuple(one["times"]),
                unit=one["unit"],
            )
            for one in json.loads(pq.read_schema(path).metadata[_SOURCES])
        )
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> DataError:
    return DataError(f"{path}: not a file of a ledger ({error}); delete it to go on without its rows")


def _numbered(column: Any) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """The different texts of a column, and the place of each row's among them."""
    encoded = column.combine_chunks().cast("string").dictionary_encode()
    return tuple(encoded.dictionary.to_pylist()), encoded.indices.to_numpy().astype(np.int64)
