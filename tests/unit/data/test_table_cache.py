"""The cache of tokenised tables: its key depends on content only, and damaged caches are rebuilt."""

from __future__ import annotations

import copy
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer

from minimind import demo
from minimind.data import table_cache
from minimind.data.encoding import EncodingOptions
from minimind.data.shapes import ShapeOptions
from minimind.data.sources.source import ROW, Source
from minimind.errors import DataError
from tests.unit.data.tables import LONG_QUESTION, ROWS, SHORT, content


def cache_folders(tmp_path: Path) -> list[str]:
    return sorted(entry.name for entry in (tmp_path / "cache").iterdir())


def test_second_load_reads_the_cache(load, write_rows, tmp_path, monkeypatch):
    path = write_rows(*ROWS)
    first = load(path)
    (folder,) = (tmp_path / "cache").iterdir()
    monkeypatch.setattr(table_cache, "tokenize", None)  # tokenising again would fail
    second = load(path)
    assert second.key == first.key
    assert content(second) == content(first)
    assert cache_folders(tmp_path) == [folder.name]


def test_names_of_the_cache_files(load, tmp_path):
    """Caches of earlier versions stay readable: another name would tokenise everything again."""
    table = load(demo.EVAL_PATH)
    assert cache_folders(tmp_path) == [f"pairs-{table.key}"]
    assert sorted(path.name for path in (tmp_path / "cache" / f"pairs-{table.key}").iterdir()) == [
        "bad.jsonl",
        "cuts.u8",
        "full_lengths.i64",
        "identities.u64",
        "labels.u8",
        "least_limits.i64",
        "lines.i64",
        "mask.u8",
        "meta.json",
        "offsets.i64",
        "prefixes.i64",
        "prompt_lengths.i64",
        "scores.f32",
        "tokens.i32",
    ]


def test_key_does_not_depend_on_the_path(load, write_rows, tmp_path):
    path = write_rows(*ROWS)
    other = tmp_path / "elsewhere" / "other.jsonl"
    other.parent.mkdir()
    shutil.copy(path, other)
    one, two = load(path), load(other)
    assert one.key == two.key
    assert two.source.files == (other,)
    assert content(one) == content(two)
    assert len(cache_folders(tmp_path)) == 1


def test_key_changes_with_a_byte_of_the_file(load, write_rows):
    path = write_rows(*ROWS)
    times = path.stat()
    before = load(path)
    path.write_bytes(path.read_bytes().replace(b"blue", b"grey"))
    # Size and modification time are as before, so only the content shows the change.
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    after = load(path)
    assert before.key != after.key
    assert content(before)[0] != content(after)[0]


@pytest.mark.parametrize(
    "change",
    [
        {"max_length": 32},
        {"options": EncodingOptions(empty_think_ratio=0.5)},
        {"options": EncodingOptions(mask="minimind")},
        {"options": EncodingOptions(template_kwargs={"enable_thinking": False})},
        {"options": EncodingOptions(last_turn_only=True)},
        {"shapes": ShapeOptions(data_format="minimind")},
    ],
    ids=str,
)
def test_key_changes_with_a_setting(load, write_rows, change):
    path = write_rows(*ROWS)
    assert load(path).key != load(path, **change).key


def test_key_changes_with_template_and_vocabulary(load, write_rows, tokenizer):
    path = write_rows(*ROWS)
    template, vocabulary = copy.deepcopy(tokenizer), copy.deepcopy(tokenizer)
    template.chat_template = "{# changed #}" + tokenizer.chat_template
    vocabulary.add_tokens(["<|one_more|>"], special_tokens=True)
    keys = {load(path, tokenizer=one).key for one in (tokenizer, template, vocabulary)}
    assert len(keys) == 3


def test_key_changes_with_the_treatment_of_special_tokens(load, write_rows, tokenizer):
    """With `split_special_tokens` a tokenizer takes its special tokens for ordinary text."""
    split = copy.deepcopy(tokenizer)
    split.split_special_tokens = True
    path = write_rows(*ROWS)
    assert (
        load(path, options=EncodingOptions(mask="minimind")).key
        != load(path, tokenizer=split, options=EncodingOptions(mask="minimind")).key
    )


def test_key_does_not_depend_on_the_tokenizer_folder(load, write_rows, tmp_path):
    path = write_rows(*ROWS)
    shutil.copytree(demo.TOKENIZER_PATH, tmp_path / "copied")
    assert load(path).key == load(path, tokenizer=AutoTokenizer.from_pretrained(tmp_path / "copied")).key


def test_key_tells_files_from_one_that_joins_them(load, write_rows):
    one, other = write_rows(*ROWS[:1], name="one.jsonl"), write_rows(*ROWS[1:], name="other.jsonl")
    orders = ((one, other), (other, one), (write_rows(*ROWS, name="all.jsonl"),))
    tables = [load(Source(name="a", files=files, unit=ROW)) for files in orders]
    assert len({table.key for table in tables}) == 3
    assert [len(table) for table in tables] == [3, 3, 3]


def test_damaged_file_is_an_error_and_leaves_the_cache_empty(load, tmp_path):
    path = tmp_path / "cut.json"
    path.write_text(json.dumps(ROWS)[:-1])
    with pytest.raises(DataError, match=r"cut\.json: a JSON array: the file ends within row 3"):
        load(path)
    assert cache_folders(tmp_path) == []


def test_partial_folder_of_a_killed_run_is_ignored(load, write_rows, tmp_path):
    path = write_rows(*ROWS)
    finished = load(path)
    (folder,) = (tmp_path / "cache").iterdir()
    partial = folder.with_name(f"{folder.name}.partial-abc")
    folder.rename(partial)
    (partial / "meta.json").unlink()
    assert content(load(path)) == content(finished)


def change_byte(path: Path, index: int) -> None:
    content = bytearray(path.read_bytes())
    content[index] ^= 1
    path.write_bytes(content)


DAMAGE = {
    "meta.json is missing": lambda folder: (folder / "meta.json").unlink(),
    "meta.json is truncated": lambda folder: (folder / "meta.json").write_text("{"),
    "tokens are missing": lambda folder: (folder / "tokens.i32").unlink(),
    "tokens are truncated": lambda folder: os.truncate(folder / "tokens.i32", 40),
    "the mask is truncated": lambda folder: os.truncate(folder / "mask.u8", 10),
    "the mask is zero": lambda folder: (folder / "mask.u8").write_bytes(bytes((folder / "mask.u8").stat().st_size)),
    "a token is another": lambda folder: change_byte(folder / "tokens.i32", 40),
    "a line number is another": lambda folder: change_byte(folder / "lines.i64", -8),
    "meta.json has no checksums": lambda folder: (folder / "meta.json").write_text(
        json.dumps({**json.loads((folder / "meta.json").read_text()), "checksums": None})
    ),
    "offsets are truncated": lambda folder: os.truncate(folder / "offsets.i64", 10),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_cache_is_rebuilt_or_reported(load, write_rows, tmp_path, name):
    """A truncated array would give wrong targets, so it must not be used; nor may the damage end in a traceback."""
    path = write_rows(*ROWS)
    intact = content(load(path))
    (folder,) = (tmp_path / "cache").iterdir()
    DAMAGE[name](folder)
    try:
        outcome = content(load(path))
    except DataError as error:
        outcome = str(error)
    assert outcome == intact or folder.name in outcome


def test_cache_that_cannot_be_written_is_an_error(load, write_rows, tmp_path):
    blocked = tmp_path / "a_file"
    blocked.touch()
    with pytest.raises(DataError, match=r"cannot write the tokenised data \(.*\); try another --cache_dir"):
        load(write_rows(*ROWS), cache_dir=blocked)


def test_bad_rows_lengths_and_counts_are_cached(load, write_rows):
    question, answer = SHORT["chosen"]
    same = {"chosen": [question, {**answer, "score": 2}], "rejected": [question, {**answer, "score": 1}]}
    path = write_rows({**SHORT, "id": 1, "score_chosen": 2, "score_rejected": 0.5}, "{kaputt 你好", LONG_QUESTION, same)
    made, read = load(path, max_length=12), load(path, max_length=12)
    assert [(row.line, row.tokenized) for row in read.bad] == [(2, False), (4, True)]
    assert len(read.bad) == 2
    assert (list(read.bad), read.counts, read.shapes, read.unused) == (
        list(made.bad),
        made.counts,
        made.shapes,
        made.unused,
    )
    assert read.unused == {"column 'id'": 1, "'score' of messages": 1}
    for name in ("full_lengths", "cuts", "lines", "prefixes", "scores"):
        np.testing.assert_array_equal(getattr(read, name), getattr(made, name))
    np.testing.assert_array_equal(read.scores, np.array([2, 0.5, *[np.nan] * 4], np.float32))
    assert read.max_length == 12
