"""Making shards: the same ones whenever and by how many processes, only as far ahead as asked, again after a kill."""

from __future__ import annotations

import dataclasses
import gzip
import shutil
import threading
import time
from concurrent.futures.process import BrokenProcessPool
from types import SimpleNamespace

import pytest

from minimind.data.sources import START, Source
from minimind.data.sources.streams import ignore
from minimind.data.streaming import builder
from minimind.data.streaming.builder import GONE, Process, build, describe
from minimind.errors import DataError
from tests.unit.data.streaming.recipes import recipe_of, write_texts


@pytest.fixture
def files(tmp_path):
    return [write_texts(tmp_path / f"{name}.jsonl", first, 22) for name, first in (("a", 0), ("b", 100), ("c", 200))]


def stores(recipe):
    found = recipe.stores()
    for store in found:
        store.refresh()
    return found


def content(recipe):
    """The list and the tokens of all shards that are on the disk."""
    return [
        (shard, store.open(shard).tokens.tolist() if store.has(shard.number) else None)
        for store in stores(recipe)
        for shard in store.shards
    ]


def test_only_what_the_run_needs_is_made(tokenizer, tmp_path, files):
    small = recipe_of(tokenizer, tmp_path, files, rows=5)
    build(small, lambda: 0)
    (store,) = stores(small)
    assert not store.ended
    # A later run goes on, over the ends of files.
    whole = dataclasses.replace(small, rows=66)
    build(whole, lambda: 0)
    (grown,) = stores(whole)
    assert grown.ended
    assert grown.shards[: len(store.shards)] == store.shards
    assert [sum(shard.rows for shard in grown.shards if shard.source == source) for source in range(3)] == [22] * 3


def test_a_run_of_many_passes_needs_no_more_than_all_shards(tokenizer, tmp_path, files):
    """Its windows are as many as its passes, which would take hours here."""
    recipe = recipe_of(tokenizer, tmp_path, files, rows=10**12)
    build(recipe, lambda: 0)
    (store,) = stores(recipe)
    assert store.ended


def test_a_stopped_builder_goes_on_with_the_same_shards(tokenizer, tmp_path, files, monkeypatch):
    whole = recipe_of(tokenizer, tmp_path / "whole", files, rows=66)
    build(whole, lambda: 0)
    stopped = recipe_of(tokenizer, tmp_path / "stopped", files, rows=66)
    real = builder.tokenize

    def stopping(*arguments, **options):
        for number, chunk in enumerate(real(*arguments, **options)):
            if number == 3:
                raise OSError("no space left")
            yield chunk

    monkeypatch.setattr(builder, "tokenize", stopping)
    # Each start gets on by a shard or two.
    starts = 0
    while True:
        starts += 1
        try:
            build(stopped, lambda: 0)
            break
        except OSError:
            assert starts < 40
    assert starts > 3
    assert [one[1] for one in content(stopped)] == [one[1] for one in content(whole)]
    assert [one[0] for one in content(stopped)] == [one[0] for one in content(whole)]


def test_removed_shards_are_made_again_from_the_row_that_is_needed(tokenizer, tmp_path, files):
    recipe = recipe_of(tokenizer, tmp_path, files, rows=66)
    build(recipe, lambda: 0)
    before = content(recipe)
    (store,) = stores(recipe)
    store.remove_but(set())
    window = recipe.order(lambda word, number: dict(enumerate(store.shards)).get(number)).window_at(40)
    build(recipe, lambda: window.start)
    first = window.parts[0].shard.number
    assert [one[1] is not None for one in content(recipe)] == [number >= first for number in range(len(before))]
    assert content(recipe)[first:] == before[first:]


def test_data_that_were_changed_are_not_mixed_with_what_they_were(tokenizer, tmp_path, files):
    recipe = recipe_of(tokenizer, tmp_path, files, rows=66)
    build(recipe, lambda: 0)
    (store,) = stores(recipe)
    store.remove_but(set())
    write_texts(files[0], 1000000, 22)
    with pytest.raises(DataError, match=r"a\.jsonl: rows 1 to \d+ are not what they were"):
        build(recipe, lambda: 0)


def test_a_bounded_builder_waits_and_removes(tokenizer, tmp_path, files):
    recipe = recipe_of(tokenizer, tmp_path, files, rows=60, keep_windows=2, behind=4)
    unbounded = recipe_of(tokenizer, tmp_path / "all", files, rows=60)
    build(unbounded, lambda: 0)
    order = unbounded.order(lambda word, number: dict(enumerate(stores(unbounded)[0].shards)).get(number))
    wanted, waits = [0], threading.Event()
    thread = threading.Thread(target=build, args=(recipe, lambda: wanted[0], waits.set))
    thread.start()
    windows = [order.window_at(row) for row in range(0, 60, 5)]
    for window in {window.number: window for window in windows}.values():
        wanted[0] = window.start
        waits.clear()
        (store,) = recipe.stores()
        until = time.monotonic() + 60
        # The run finds its window; behind it there are at most two others, and one shard that the order reads ahead.
        while not all(store.has(part.shard.number) for part in window.parts):
            assert time.monotonic() < until
            time.sleep(0.001)
        allowed = range(order.window_at(max(0, window.start - 4)).number, window.number + 3)
        kept = {part.shard.number for number in allowed for part in order.window(number).parts}
        present = {int(path.name[-6:]) for path in store.folder.glob("shard-??????")}
        assert present <= kept | {max(present)}
    wanted[0] = 59
    thread.join(60)
    assert not thread.is_alive()
    (store,) = stores(recipe)
    assert not store.has(0)
    assert store.shards == stores(unbounded)[0].shards[: len(store.shards)]


def test_words_have_shards_of_their_own(tokenizer, tmp_path, files):
    recipe = recipe_of(tokenizer, tmp_path, files[:1], files[1:], rows=66)
    build(recipe, lambda: 0)
    first, second = stores(recipe)
    assert sum(shard.rows for shard in first.shards) == 22
    assert sum(shard.rows for shard in second.shards) == 44


def test_the_process_makes_them_and_tells_what_is_wrong(tokenizer, tmp_path, files, monkeypatch):
    """What the process runs; test_streaming.py of the distributed tests starts it."""
    monkeypatch.setattr(builder, "_step_back", lambda: None)
    recipe = recipe_of(tokenizer, tmp_path / "process", files, rows=66)
    builder._work(recipe, SimpleNamespace(value=0))
    (store,) = stores(recipe)
    assert (store.ended, store.failure()) == (True, "")
    empty = tmp_path / "empty.jsonl"
    empty.write_text('{"text": ""}\n')
    broken = recipe_of(tokenizer, tmp_path / "broken", [empty], files, rows=66)
    builder._work(broken, SimpleNamespace(value=0))
    assert [store.failure() for store in stores(broken)] == [
        "word 0: none of its rows can be trained on; see launch/prepare_data.py"
    ] * 2


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError("no space left"), "cannot write the tokenised data (no space left); try another --cache_dir"),
        (BrokenProcessPool(), "a tokenising process died, perhaps for lack of memory"),
        (DataError("a.jsonl: cut off"), "a.jsonl: cut off"),
    ],
)
def test_errors_are_told_with_a_remedy(error, said, tokenizer, tmp_path, files):
    assert said in describe(error, recipe_of(tokenizer, tmp_path, files))


def test_a_process_that_was_killed_is_noticed():
    process = object.__new__(Process)
    for status, problem in ((None, ""), (0, GONE), (-9, "the tokenising process died (exit status -9)")):
        process._process = SimpleNamespace(exitcode=status)
        assert process.problem() == problem


def test_a_run_goes_on_where_the_tokenising_of_another_failed(tokenizer, tmp_path, files, monkeypatch):
    """Both share the folder; the second waits for the lock while the first fails."""
    monkeypatch.setattr(builder, "_step_back", lambda: None)
    mine = recipe_of(tokenizer, tmp_path, files, rows=66)
    other = dataclasses.replace(mine, run="other")
    real, fails = builder.tokenize, threading.Event()

    def failing(*arguments, **options):
        for number, chunk in enumerate(real(*arguments, **options)):
            if number == 2 and threading.current_thread() is first:
                fails.wait(60)
                raise OSError("no space left")
            yield chunk

    monkeypatch.setattr(builder, "tokenize", failing)
    first, second = (
        threading.Thread(target=builder._work, args=(one, SimpleNamespace(value=0))) for one in (mine, other)
    )
    first.start()
    until = time.monotonic() + 60
    while not list(tmp_path.glob("stream-*/shard-*")):
        assert time.monotonic() < until
        time.sleep(0.001)
    second.start()
    fails.set()
    for thread in (first, second):
        thread.join(60)
    assert "no space left" in stores(mine)[0].failure()
    assert (stores(other)[0].failure(), stores(other)[0].ended) == ("", True)


@pytest.mark.parametrize("packed", [False, True])
def test_a_shard_is_made_again_from_its_own_place(tokenizer, tmp_path, monkeypatch, packed):
    """Of a packed file there is no place to begin at: what is before it is read and not tokenised."""
    path = write_texts(tmp_path / "a.jsonl", 0, 200)
    if packed:
        path.write_bytes(gzip.compress(path.read_bytes()))
    recipe = recipe_of(tokenizer, tmp_path, [path], rows=200)
    build(recipe, lambda: 0)
    before = content(recipe)
    (store,) = stores(recipe)
    last = store.shards[-1]
    shutil.rmtree(store.path(last.number))
    read, real = [], Source.rows

    def counting(self, on_read=ignore, start=START):
        return real(self, lambda number: (read.append(number), on_read(number)), start)

    monkeypatch.setattr(Source, "rows", counting)
    build(recipe, lambda: 199)
    assert content(recipe) == before
    assert sum(read) == (path.stat().st_size if packed else last.bytes)
    assert last.bytes < path.stat().st_size / 4
