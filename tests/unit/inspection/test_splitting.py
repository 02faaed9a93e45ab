"""Held-out pairs: by prompt, by the seed, and every row in exactly one file as it was."""

from __future__ import annotations

import gzip
import json
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from minimind.data.shapes import Items, ShapeOptions, parse_rows
from minimind.data.sources import RowError, open_source
from minimind.errors import ConfigError
from minimind.inspection.splitting import Split, choose_prompts, one_line, split_rows
from tests.conftest import conversation, pair

WORDS = frozenset({"role", "content"})
# 40 prompts, of which every second one has two rows, not next to each other.
ROWS = [pair(f"Number {i}?", "Yes.", "No!") for i in range(40)]
ROWS += [pair(f"Number {i}?", "Yes, indeed.", "No!") for i in range(0, 40, 2)]


@pytest.fixture
def split(tmp_path):
    def run(*paths, share=0.25, seed=1, folder="out") -> Split:
        sources = [open_source(path) for path in paths]
        options = [ShapeOptions()] * len(sources)
        return split_rows(sources, options, WORDS, share=share, seed=seed, folder=tmp_path / folder)

    return run


def questions(path) -> set[str]:
    return {parse_rows(line)[0].chosen[0]["content"] for line in path.read_bytes().splitlines()}


def test_no_prompt_is_on_both_sides_and_no_row_is_lost(split, write_rows):
    path = write_rows(*ROWS)
    done = split(path)
    (train,) = done.train
    assert questions(train) & questions(done.evaluation) == set()
    assert (len(questions(done.evaluation)), done.eval_prompts, done.prompts) == (10, 10, 40)
    lines = [train.read_bytes().splitlines(), done.evaluation.read_bytes().splitlines()]
    assert [len(one) for one in lines] == [done.train_rows, done.eval_rows]
    assert Counter(lines[0] + lines[1]) == Counter(path.read_bytes().splitlines())
    # In each file in the order of the source.
    order = path.read_bytes().splitlines()
    assert all([order.index(line) for line in one] == sorted(order.index(line) for line in one) for one in lines)


def test_the_seed_decides_and_the_order_of_rows_does_not(split, write_rows):
    one = split(write_rows(*ROWS))
    again = split(write_rows(*ROWS[::-1], name="reversed.jsonl"), folder="again")
    other = split(write_rows(*ROWS), folder="other", seed=2)
    assert questions(one.evaluation) == questions(again.evaluation)
    assert questions(one.evaluation) != questions(other.evaluation)


def test_a_larger_share_holds_out_the_same_prompts_and_more():
    prompts = np.random.default_rng(0).integers(1, 2**64, 1000, np.uint64)
    small, large = (set(choose_prompts(prompts, share, 3).tolist()) for share in (0.02, 0.2))
    assert (len(small), len(large)) == (20, 200)
    assert small < large


@pytest.mark.parametrize(("number", "share", "expected"), [(2, 0.001, 1), (2, 0.999, 1), (100, 0.5, 50)])
def test_both_sides_have_a_prompt(number, share, expected):
    assert len(choose_prompts(np.arange(1, number + 1, dtype=np.uint64), share, 0)) == expected


def test_one_prompt_cannot_be_split(split, write_rows):
    with pytest.raises(ConfigError, match=r"--eval_share 0\.25: the rows have 1 prompts; two are needed"):
        split(write_rows(pair("Why?", "Yes.", "No!"), "{broken"))


def test_refused_rows_stay_with_the_others(split, write_rows):
    """With what they were, so that the run refuses them for the same reasons."""
    done = split(write_rows("{broken", *ROWS[:4], '{"chosen": []}'), share=0.5)
    lines = done.train[0].read_text(encoding="utf-8").splitlines()
    assert (lines[0], lines[-1], len(lines)) == ("{broken", '{"chosen": []}', 4)


def test_several_sources_have_a_file_each_and_one_prompt_is_on_one_side(split, write_rows):
    one, two = write_rows(*ROWS[:30]), write_rows(*ROWS[20:], name="b.jsonl")
    done = split(one, two)
    assert [path.name for path in (*done.train, done.evaluation)] == ["train_1.jsonl", "train_2.jsonl", "eval.jsonl"]
    assert (questions(done.train[0]) | questions(done.train[1])) & questions(done.evaluation) == set()
    assert questions(done.train[0]) <= {f"Number {i}?" for i in range(30)}


def test_other_files_become_json_lines(split, tmp_path):
    """Parquet, a packed and pretty-printed array, and UTF-16 hold the same rows."""
    parquet, array, utf16 = (tmp_path / name for name in ("a.parquet", "a.json.gz", "a.jsonl"))
    pq.write_table(pa.Table.from_pylist(ROWS), parquet)
    array.write_bytes(gzip.compress(json.dumps(ROWS, indent=2).encode()))
    utf16.write_text("\n".join(map(json.dumps, ROWS)), encoding="utf-16")
    for number, path in enumerate((parquet, array, utf16)):
        done = split(path, folder=str(number))
        lines = [line for file in (*done.train, done.evaluation) for line in file.read_bytes().splitlines()]
        assert sorted(map(json.loads, lines), key=ROWS.index) == sorted(ROWS, key=ROWS.index)
        assert done.eval_prompts == 10


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b'\xef\xbb\xbf{"a":  "\xe4\xbd\xa0"}\r\n', '{"a":  "你"}'),
        (b'{\n  "a": "1  2",\r\n  "b": 2\n}', '{ "a": "1  2", "b": 2 }'),
        ({"a": "你", "when": pa.scalar(0, pa.date32()).as_py()}, '{"a": "你", "when": "1970-01-01"}'),
    ],
)
def test_a_row_as_one_line(content, expected):
    assert one_line(content).decode() == expected


@pytest.mark.parametrize("content", [b'{"a": "1\n2"}', b'{"chosen":\n1', RowError("the row is longer than 16 MiB")])
def test_a_broken_row_of_several_lines_is_refused_later_too(content):
    line = one_line(content)
    assert b"\n" not in line
    with pytest.raises(RowError, match="a JSON string"):
        parse_rows(line)


def test_a_source_is_not_overwritten(split, write_rows, tmp_path):
    path = write_rows(*ROWS)
    done = split(path)
    before = done.train[0].read_bytes()
    with pytest.raises(ConfigError, match=r"train\.jsonl is read and would be overwritten; give another --out"):
        split(done.train[0])
    assert done.train[0].read_bytes() == before


def test_a_failed_split_leaves_no_file_behind(split, write_rows, tmp_path, monkeypatch):
    path = write_rows(*ROWS)
    calls = iter(range(100))
    monkeypatch.setattr("minimind.inspection.splitting.one_line", lambda content: b"x" if next(calls) < 9 else 1 / 0)
    with pytest.raises(ZeroDivisionError):
        split(path)
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("items", "row"),
    [
        (Items.CONVERSATIONS, lambda prompt, last: {"conversations": conversation(prompt, last)}),
        (Items.TEXTS, lambda prompt, last: {"text": prompt, "note": last}),
    ],
)
def test_rows_that_stand_alone_are_split_by_their_beginning_or_as_wholes(tmp_path, write_rows, items, row):
    rows = [row(f"Number {i}?", last) for i in range(12) for last in ("Yes.", "No!")]
    path = write_rows(*rows, "{broken")
    options = [ShapeOptions(items=items)]
    done = split_rows([open_source(path)], options, WORDS, share=0.25, seed=1, folder=tmp_path / "out")
    assert (done.prompts, done.eval_prompts, done.eval_rows, done.train_rows) == (12, 3, 6, 19)
    held_out = [json.loads(line) for line in done.evaluation.read_bytes().splitlines()]
    # Both rows of a prompt are on one side.
    assert Counter(json.dumps(one).replace("Yes.", "No!") for one in held_out).most_common()[-1][1] == 2
