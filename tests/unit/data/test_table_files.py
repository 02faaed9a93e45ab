"""The files of a table: whatever a kill leaves of them, the chunks that are whole are taken over, and only these."""

from __future__ import annotations

import random
import shutil

import numpy as np
import pytest

from minimind.data import table_files
from minimind.data.rows import BadRow
from minimind.data.table_files import JOURNAL, OTHERS, TableWriter, read_table
from minimind.data.tokens import ROWS, Chunk

MAX_LENGTH = 9


def chunk(seed: int, pairs: int = 3, **changes) -> Chunk:
    """A chunk of random numbers in a valid form."""
    draw = np.random.default_rng(seed)
    lengths = draw.integers(1, MAX_LENGTH, 2 * pairs).tolist()
    values = {
        "tokens": draw.integers(0, 6400, sum(lengths)).astype(np.int32),
        "mask": draw.integers(0, 2, sum(lengths)).astype(np.uint8),
        "lengths": lengths,
        "full_lengths": lengths,
        "prefixes": [1] * pairs,
        "prompt_lengths": [1] * pairs,
        "least_limits": [2] * pairs,
        "identities": draw.integers(0, 2**63, 3 * pairs).tolist(),
        "scores": draw.random(2 * pairs).tolist(),
        "labels": [2] * pairs,
        "lines": list(range(10 * seed + 1, 10 * seed + 1 + pairs)),
        "cuts": [0] * pairs,
        "bad": [BadRow(line=10 * seed + 9, reason="不好\ud800", tokenized=False)] if seed % 2 else [],
        "counts": {ROWS: pairs + seed % 2},
        "shapes": {"minimind": pairs},
        "unused": {"column 'id'": pairs},
        "bytes_read": 0,
    }
    return Chunk(**{**values, **changes})


CHUNKS = [chunk(seed, pairs=3 + seed % 2 if seed != 2 else 0) for seed in range(5)]


@pytest.fixture
def write(tmp_path):
    """Write chunks into a folder, behind those of another folder; the folder and the number of rows taken over."""

    def call(name: str, chunks=CHUNKS, after=None, finish=True):
        folder = tmp_path / name
        folder.mkdir()
        writer = TableWriter(folder)
        if after is not None:
            writer.take_over(after, lambda: None)
        taken = writer.rows
        for one in chunks if after is None else rest_after(taken):
            writer.append(one)
        if finish:
            writer.finish(MAX_LENGTH)
        writer.close()
        return folder, taken

    return call


def rest_after(rows: int) -> list[Chunk]:
    """The chunks behind a number of rows, which is the end of a chunk."""
    ends = np.cumsum([one.counts[ROWS] for one in CHUNKS]).tolist()
    return CHUNKS[[0, *ends].index(rows) :]


def contents(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != JOURNAL}


def test_arrays_are_those_of_all_chunks(write):
    folder, _ = write("whole")
    table = read_table(folder, None, "key")
    for name in ("tokens", "mask", "full_lengths", "lines", "identities", "scores", "cuts"):
        joined = np.concatenate([np.asarray(getattr(one, name), getattr(table, name).dtype) for one in CHUNKS])
        assert getattr(table, name).tolist() == joined.tolist()
    assert np.diff(table.offsets).tolist() == [length for one in CHUNKS for length in one.lengths]
    assert (len(table.bad), list(table.bad)) == (2, [row for one in CHUNKS for row in one.bad])
    assert (table.counts, table.unused) == ({ROWS: 16}, {"column 'id'": 14})
    assert isinstance(table.lines.base, np.memmap)


def test_a_writer_keeps_no_more_of_many_chunks(write):
    """What a writer holds besides its files has one size after one chunk and after many."""
    sizes = []
    for name, number in (("one", 1), ("many", 50)):
        folder, _ = write(name, [CHUNKS[1]] * number, finish=False)
        writer = TableWriter(folder)
        for one in [CHUNKS[1]] * number:
            writer.append(one)
        sizes.append(sum(len(value) for value in vars(writer).values() if hasattr(value, "__len__")))
        writer.close()
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize("seed", range(40))
def test_whatever_is_cut_or_changed_the_rest_is_the_same(write, seed):
    """One or two files of a killed run are torn, or a byte of one is another."""
    draw = random.Random(seed)
    whole, _ = write("whole")
    partial, _ = write("partial", finish=False)
    files = sorted(partial.iterdir())
    for path in draw.sample(files, draw.choice((1, 1, 2))):
        content = bytearray(path.read_bytes())
        place = draw.randrange(len(content))
        if draw.random() < 0.6:
            content = content[:place]
        else:
            content[place] ^= 1 << draw.randrange(8)
        path.write_bytes(content)
    left = {path.name: path.read_bytes() for path in files}
    resumed, _ = write("resumed", after=partial)
    assert contents(resumed) == contents(whole)
    # The other folder may belong to a process that is alive.
    assert {path.name: path.read_bytes() for path in files} == left


def test_how_much_is_taken_over(write):
    partial, _ = write("partial", finish=False)
    assert write("all", after=partial)[1] == 16
    tokens = partial / "tokens.i32"
    tokens.write_bytes(tokens.read_bytes()[:-1])
    # All chunks but the last.
    assert write("most", after=partial)[1] == 16 - CHUNKS[-1].counts[ROWS]
    (partial / "cuts.u8").unlink()
    assert write("none", after=partial)[1] == 0


def test_an_earlier_version_s_folder_is_no_beginning(write, tmp_path):
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "tokens.i32").write_bytes(b"1234")
    assert write("new", after=tmp_path / "old")[1] == 0


def test_names_of_columns_are_bounded(write, monkeypatch):
    monkeypatch.setattr(table_files, "_NAMES", 2)
    names = [{"a": 3, "b": 1}, {"c": 2, "a": 1}, {"d": 4}]
    folder, _ = write("whole", [chunk(0, unused=one) for one in names])
    assert read_table(folder, None, "key").unused == {"a": 4, "b": 1, OTHERS: 6}


def test_a_table_of_no_pairs(write):
    folder, _ = write("empty", [chunk(1, pairs=0)])
    table = read_table(folder, None, "key")
    assert (len(table), len(table.bad), table.offsets.tolist()) == (0, 1, [0])


def test_a_folder_without_its_description_is_no_table(write):
    folder, _ = write("partial", finish=False)
    assert read_table(folder, None, "key") is None
    shutil.rmtree(folder)
    assert read_table(folder, None, "key") is None
