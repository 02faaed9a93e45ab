"""Streamed rows: the global batches of any number of ranks, each row once in an epoch, and readers that wait."""

from __future__ import annotations

import dataclasses
import math
import os
import threading
import tracemalloc

import numpy as np
import pytest

from minimind.data import tokens
from minimind.data.entries import TEXT
from minimind.data.streaming.builder import build
from minimind.data.streaming.rows import ShardReader, StreamedRows, StreamSampler
from minimind.data.tokens import Chunk
from minimind.errors import DataError
from tests.unit.data.streaming.recipes import MAX_LENGTH, recipe_of, write_texts


@pytest.fixture
def recipe(tokenizer, tmp_path):
    files = [write_texts(tmp_path / f"{name}.jsonl", first, 24) for name, first in (("a", 0), ("b", 100))]
    return recipe_of(tokenizer, tmp_path / "cache", files, rows=96)


def rows_of(recipe, problem=str, on_work=lambda: None):
    reader = ShardReader(recipe.stores(), problem, on_work)
    return StreamedRows(recipe.order(reader.shard), reader, "texts")


def sampler_of(rows, **changes):
    settings = {"micro_batch_size": 2, "accumulation_steps": 2, "world_size": 2, "balanced": True, "token_budget": None}
    return StreamSampler(rows=rows, identity={}, **{**settings, **changes})


def global_batch(sampler, step):
    ranks = [sampler.micro_batches(step, rank) for rank in range(sampler.world_size)]
    return sorted(row for rank in ranks for micro in rank for row in micro)


def test_each_row_once_in_an_epoch_whatever_the_split(recipe, tokenizer):
    build(recipe, lambda: 0)
    sampler = sampler_of(rows_of(recipe))
    one = sampler_of(rows_of(recipe), world_size=1, micro_batch_size=8, accumulation_steps=1)
    budget = sampler_of(rows_of(recipe), world_size=1, micro_batch_size=8, accumulation_steps=1, token_budget=30)
    batches = [global_batch(sampler, step) for step in range(1, 13)]
    assert batches == [global_batch(one, step) for step in range(1, 13)]
    assert batches == [global_batch(budget, step) for step in range(1, 13)]
    assert len(budget.micro_batches(1, 0)) > 1
    rows = one.rows
    for epoch in (batches[:6], batches[6:]):
        taken = [rows.row_of(row) for batch in epoch for row in batch]
        assert sorted((source.short_name, line) for source, line in taken) == [
            (name, line) for name in ("a.jsonl", "b.jsonl") for line in range(1, 25)
        ]
    assert [one.epoch_of(step) for step in (6, 12)] == [1, 2]
    assert sampler.position_after(5) == one.position_after(5)
    assert sampler.position_after(5) != one.position_after(6)
    # What a row holds is what its line says.
    row = batches[3][0]
    source, line = rows.row_of(row)
    text = tokenizer.decode(rows[row].chosen, skip_special_tokens=True)
    assert text == f"Text {line - 1 + (100 if source.short_name == 'b.jsonl' else 0)} of the tests."
    assert rows[row].index == row
    assert rows.place(row) == f"{source.name}, line {line}"


def test_without_a_shuffle_the_order_is_that_of_the_files(recipe):
    recipe = dataclasses.replace(recipe, seed=None)
    build(recipe, lambda: 0)
    sampler = sampler_of(rows_of(recipe), balanced=False, world_size=1)
    assert [sampler.micro_batches(step, 0) for step in (1, 2)] == [[[0, 1], [2, 3]], [[4, 5], [6, 7]]]


def test_the_position_needs_no_shard_on_the_disk(recipe):
    build(recipe, lambda: 0)
    before = sampler_of(rows_of(recipe)).position_after(3)
    for store in recipe.stores():
        store.remove_but(set())
    assert sampler_of(rows_of(recipe)).position_after(3) == before


def test_readers_wait_for_shards_and_tell_what_is_needed(recipe):
    """The builder starts when the first rank asks for rows."""
    asked, works = threading.Event(), []
    thread = threading.Thread(target=lambda: (asked.wait(60), build(recipe, lambda: 0)))
    thread.start()
    wanted = []
    sampler = sampler_of(
        rows_of(recipe, on_work=lambda: works.append(1)), on_rows=lambda row: (wanted.append(row), asked.set())
    )
    assert len(global_batch(sampler, 2)) == 8
    thread.join()
    assert wanted == [15, 15]
    assert sampler.rows.reader.waited > 0
    assert works


def test_all_ranks_learn_that_no_shard_follows(recipe):
    first, second = rows_of(recipe, problem=lambda: "the tokenising process died"), rows_of(recipe)
    for rows in (first, second):
        with pytest.raises(DataError, match="the tokenising process died"):
            rows[0]


def test_the_reason_that_a_process_wrote_is_not_replaced_by_its_end(recipe):
    """The process writes it, then ends: when it is seen to have ended, the reason has to be looked for again."""

    def ended():
        recipe.stores()[-1].fail("a.jsonl: cut off")
        return "a shard is gone"

    for problem in (ended, str):
        with pytest.raises(DataError, match=r"^a\.jsonl: cut off$"):
            rows_of(recipe, problem=problem)[0]


def test_a_shard_that_is_gone_ends_the_run_instead_of_being_waited_for(recipe):
    build(recipe, lambda: 0)
    rows = rows_of(recipe, problem=lambda: "a shard is gone")
    assert len(rows[0].chosen) > 1
    for store in recipe.stores():
        store.remove_but(set())
    with pytest.raises(DataError, match="a shard is gone"):
        rows[40]


def test_shards_of_earlier_windows_are_closed(recipe):
    build(recipe, lambda: 0)
    rows = rows_of(recipe)
    sampler = sampler_of(rows)
    most = 0
    for step in range(1, 13):
        global_batch(sampler, step)
        most = max(most, len(rows._opened))
    assert most < sum(len(rows.order.window(number).parts) for number in range(4))


def test_rows_that_are_left_out_are_counted(tokenizer, tmp_path):
    path = write_texts(tmp_path / "a.jsonl", 0, 12)
    path.write_text(path.read_text() + '{"txt": "x"}\n' * 2)
    # A file of which no row can be trained on: no rank opens its shard.
    other = tmp_path / "b.jsonl"
    other.write_text('{"txt": "x"}\n' * 5)
    recipe = recipe_of(tokenizer, tmp_path / "cache", [path, other], rows=24)
    build(recipe, lambda: 0)
    rows = rows_of(recipe)
    for step in range(1, 7):  # two passes
        global_batch(sampler_of(rows, micro_batch_size=1), step)
    assert (rows.order.read, rows.order.left_out) == (19, 7)
    assert rows.example.startswith("lines 13, 14")


ROWS = 40_000


def many_shards(recipe, number):
    """Shards of so many rows; all are one on the disk, but each that is opened has lengths and costs of its own."""
    (store,) = recipe.stores()
    store.prepare()
    lengths = [3, 1] * ROWS
    chunk = Chunk(
        tokens=np.zeros(4 * ROWS, np.int32),
        mask=np.tile(np.array([0, 1, 1, 0], np.uint8), ROWS),
        lengths=lengths,
        full_lengths=lengths,
        prefixes=[0] * ROWS,
        prompt_lengths=[1] * ROWS,
        least_limits=[2] * ROWS,
        identities=[0] * (3 * ROWS),
        lines=list(range(1, ROWS + 1)),
        scores=[math.nan] * (2 * ROWS),
        labels=[TEXT] * ROWS,
        cuts=[0] * ROWS,
        bad=[],
        counts={tokens.ROWS: ROWS},
        shapes={"texts": ROWS},
        unused={},
        bytes_read=1,
    )
    first = store.write(0, 0, [chunk], MAX_LENGTH)
    for place in range(number):
        if place:
            store.path(place).mkdir()
            for path in store.path(0).iterdir():
                os.link(path, store.path(place) / path.name)
        store.append(dataclasses.replace(first, number=place, first=place * ROWS, bytes=1))
    store.end()


def grown(rows, windows):
    """By how many bytes Python's and numpy's memory grows between a quarter of the windows and all of them.

    Not by the process's resident memory: it has room that earlier tests have freed, in which a leak would not show.
    """
    sampler = sampler_of(rows, micro_batch_size=200, accumulation_steps=1, world_size=1)
    tracemalloc.start()
    before = 0
    for number in range(windows):
        # Rows of all shards of the window.
        (batch,) = sampler.micro_batches(-(-rows.order.window(number).start // 200) + 1, 0)
        assert {rows.order.part_of(row).shard.number for row in batch} >= set(range(2 * number, 2 * number + 2))
        assert sum(len(rows[row].chosen) for row in batch) == 3 * 200
        if number == windows // 4 - 1:
            before = tracemalloc.get_traced_memory()[0]
    after = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    return after - before


def test_memory_stays_flat_while_more_shards_are_read(recipe, monkeypatch):
    """Twelve shards, then 36 more. Shards that stay open are seen as memory."""
    recipe = dataclasses.replace(recipe, window_tokens=2 * 2 * ROWS)
    many_shards(recipe, 48)
    of_open_shards = 36 * ROWS * 16  # costs and tokens, 8 bytes each
    assert grown(rows_of(recipe), 24) < of_open_shards / 4
    monkeypatch.setattr(StreamedRows, "close_before", lambda self, row: None)
    assert grown(rows_of(recipe), 24) > of_open_shards / 2
