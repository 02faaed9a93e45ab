"""Shards on the disk: a list that grows line by line, tables that may be removed and made again."""

from __future__ import annotations

import errno
import os

import pytest

from minimind.data.streaming.builder import build
from minimind.data.streaming.shards import ShardStore
from minimind.errors import DataError
from tests.unit.data.streaming.recipes import recipe_of, write_texts


@pytest.fixture
def recipe(tokenizer, tmp_path):
    made = recipe_of(tokenizer, tmp_path, [write_texts(tmp_path / "a.jsonl", 0, 40)], rows=40)
    build(made, lambda: 0)
    return made


def store_of(recipe):
    (store,) = recipe.stores()
    store.refresh()
    return store


def test_the_list_says_what_the_shards_hold(recipe):
    store = store_of(recipe)
    assert store.ended
    assert len(store.shards) > 3
    assert sum(shard.rows for shard in store.shards) == sum(shard.pairs for shard in store.shards) == 40
    assert sum(shard.bytes for shard in store.shards) == recipe.words[0].sources[0].size
    table = store.open(store.shards[1])
    first = store.shards[1].first
    assert (len(table), table.lines[0], int(table.packed_tokens.sum())) == (
        store.shards[1].pairs, first + 1, store.shards[1].tokens
    )  # fmt: skip
    assert store.shards[1].tokens > recipe.shard_tokens // 2


def test_a_reason_is_seen_when_it_is_whole(recipe, monkeypatch):
    store, seen, replace = store_of(recipe), [], os.replace

    def replaced(*paths):
        seen.append(store.failure())
        replace(*paths)

    monkeypatch.setattr("minimind.data.streaming.shards.os.replace", replaced)
    store.fail("line 7 is wrong")
    assert [*seen, store.failure()] == ["", "line 7 is wrong"]
    store.forget_failure()
    assert store.failure() == ""


def test_a_reason_that_does_not_fit_on_the_disk_is_a_failure_all_the_same(recipe, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_text", full)
    store = store_of(recipe)
    with pytest.raises(OSError, match="No space left"):
        store.fail("line 7 is wrong")
    assert "the reason could not be written: is the disk full?" in store.failure()


def test_a_list_is_read_as_it_grows_and_a_half_written_line_is_not(recipe, tmp_path):
    store = store_of(recipe)
    whole = (store.folder / "shards.jsonl").read_bytes()
    lines = whole.splitlines(keepends=True)
    copy = tmp_path / "copy"
    copy.mkdir()
    reader = ShardStore(copy, store.sources, recipe.policies)
    reader.refresh()
    assert reader.shards == []
    for written, known in (
        (lines[0] + lines[1][:-1], 1),
        (lines[0] + lines[1] + lines[2][:5], 2),
        (whole, len(lines) - 1),
    ):
        (copy / "shards.jsonl").write_bytes(written)
        reader.refresh()
        assert reader.shards == store.shards[:known]
    assert reader.ended
    # Who writes removes what a killed one left.
    (copy / "shards.jsonl").write_bytes(lines[0] + lines[1][:5])
    (copy / "shard-000001.partial").mkdir()
    writer = ShardStore(copy, store.sources, recipe.policies)
    writer.prepare()
    assert (copy / "shards.jsonl").read_bytes() == lines[0]
    assert [path.name for path in copy.iterdir()] == ["shards.jsonl"]


def test_shards_are_removed_but_some_and_others_keep_reading(recipe):
    store = store_of(recipe)
    table = store.open(store.shards[0])
    before = table[0].chosen.tolist()
    store.remove_but({2})
    assert [store.has(shard.number) for shard in store.shards[:4]] == [False, False, True, False]
    assert table[0].chosen.tolist() == before


def test_a_damaged_shard_is_named(recipe):
    store = store_of(recipe)
    (path,) = store.path(0).glob("tokens*")
    path.write_bytes(b"\7" + path.read_bytes()[1:])
    with pytest.raises(DataError, match="shard-000000: the shard is damaged; remove this folder"):
        store.open(store.shards[0])


def test_readers_learn_why_no_shard_follows(recipe):
    store = store_of(recipe)
    assert store.failure() == ""
    store.fail("the disk is full")
    assert store_of(recipe).failure() == "the disk is full"
    store.forget_failure()
    assert store.failure() == ""
