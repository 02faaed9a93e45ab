"""Files that would take all memory or hours: one error, or a bad row among good ones, within bounds.

A process of its own reads them, and tells the peak of its resident memory (VmHWM) and its processor time for each.
"""

from __future__ import annotations

import functools
import gzip
import json
import lzma
import multiprocessing
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from minimind.errors import DataError
from tests.faults.test_fuzz_files import read_all
from tests.forked import fresh_context
from tests.unit.data.sources.files import zstd

MIB = 2**20
LARGE = "x" * (100 * MIB)
ROW = {"prompt": "q", "chosen": "a", "rejected": "b"}
TEXT = json.dumps(ROW)
HEADER = "prompt,chosen,rejected\nq,a,b\n"
TOO_LONG = "the row is longer than 16 MiB"
# What a process may take beyond what it has: rows of 16 MiB become values of Python, which are larger. The issue's
# bound for a whole process is 1 GiB.
MOST_MIB, MOST_SECONDS = 600, 30.0


def table(large: str) -> pa.Table:
    return pa.table({"prompt": ["q"] * 3, "chosen": ["a", large, "a"], "rejected": ["b"] * 3})


def bomb(pack: str, path: Path) -> None:
    """A row, and 512 MiB of blanks."""
    first, blanks = f"{TEXT}\n".encode(), b" " * MIB
    if pack == "zst":
        path.write_bytes(zstd(first + 512 * blanks))
        return
    # Both may be several packed files, one behind the other: only one of the blanks is packed.
    packed = gzip.compress if pack == "gz" else functools.partial(lzma.compress, preset=0)
    path.write_bytes(packed(first) + packed(16 * blanks) * 32)


# Name -> the text of a file, and what is found: the number of pairs and the reasons of bad rows, or an error.
TEXTS = {
    "a line of 100 MiB": (lambda: f'{TEXT}\n{{"prompt": "{LARGE}"}}\n{TEXT}\n', (2, [TOO_LONG])),
    "an element of 100 MiB": (lambda: f'[{TEXT}, {{"prompt": "{LARGE}"}}, {TEXT}]', (2, [TOO_LONG])),
    "a cell of 100 MiB": (lambda: f"{HEADER}q,{LARGE},b\n", f"a table with separators: row 2: {TOO_LONG}"),
    "a quote that does not end": (
        lambda: HEADER + 'q,"' + "x,y\n" * (5 * MIB),
        f"row 2: {TOO_LONG}; or a quote in it does not end",
    ),
    "a row of a hundred million cells": (lambda: HEADER + "x," * (50 * MIB), f"row 2: {TOO_LONG}"),
    "a million columns": (
        lambda: ",".join(f"c{index}" for index in range(10**6)) + "\n",
        "it has 1000000 columns; 10000 are the most",
    ),
    "a million keys": (
        lambda: f"{TEXT}\n{{" + ",".join(f'"k{index}": 1' for index in range(10**6)) + "}\n",
        (1, ["unknown row shape: an object with the keys ['k0', 'k1', 'k2', 'k3', ...]"]),
    ),
    "an array of brackets": (lambda: "[" * (20 * MIB), "row 1 is nested 100,000 brackets deep"),
    "an array of empty lists": (lambda: f"[[{'[],' * (7 * MIB)}[]]]", "row 1 has more than 1,000,000 brackets"),
    "a line of brackets": (lambda: TEXT + "\n" + "[" * (15 * MIB) + "\n", (1, ["invalid JSON: nested too deeply"])),
    "millions of empty lists": (
        lambda: f'{TEXT}\n{{"chosen": [{"[]," * (2 * MIB)}1], "rejected": []}}\n',
        (1, ["'chosen' message 0 is not an object"]),
    ),
}
FILES = {
    **{name: lambda path, text=text: path.write_text(text()) for name, (text, _) in TEXTS.items()},
    "parquet with a cell of 100 MiB": lambda path: pq.write_table(table(LARGE), path),
    **{f"a bomb in {pack}": lambda path, pack=pack: bomb(pack, path) for pack in ("gz", "zst", "xz")},
}
FOUND = {
    **{name: found for name, (_, found) in TEXTS.items()},
    "parquet with a cell of 100 MiB": (2, [TOO_LONG]),
    **{f"a bomb in {pack}": "over 500 times its size, which preference data do not" for pack in ("gz", "zst", "xz")},
}


def peak() -> int:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM:")) >> 10


def read(connection: Connection) -> None:
    """Read each file that is named, and tell what is found, the MiB and the seconds; in a process of its own."""
    for path in iter(connection.recv, None):
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
        before, started = peak(), time.process_time()
        try:
            found: object = read_all(path)
        except DataError as error:
            found = str(error)
        connection.send((found, peak() - before, time.process_time() - started))


@pytest.fixture(scope="module")
def reader() -> Iterator[Connection]:
    here, there = multiprocessing.Pipe()
    process = fresh_context().Process(target=read, args=(there,), daemon=True)
    process.start()
    there.close()  # a reader that dies ends the test
    yield here
    here.send(None)
    process.join()


@pytest.mark.parametrize("name", FILES)
def test_large_files(reader, tmp_path, name):
    path = tmp_path / "pairs"
    FILES[name](path)
    reader.send(str(path))
    found, mib, seconds = reader.recv()
    path.unlink()
    expected = FOUND[name]
    if isinstance(expected, str):
        assert expected in found
    else:
        pairs, reasons = found
        assert pairs == expected[0]
        assert [reason.startswith(one) for reason, one in zip(reasons, expected[1], strict=True)] == [True]
    assert mib < MOST_MIB
    assert seconds < MOST_SECONDS
    print(f"{name}: {mib} MiB, {seconds:.1f} s")
