"""What leaves the disk where another process has made shards before: nothing that is listed and still needed."""

from __future__ import annotations

import dataclasses

import pytest

from minimind.data.streaming.builder import build
from minimind.data.streaming.shards import ShardStore
from tests.unit.data.streaming.recipes import recipe_of, write_texts

ROWS, KEPT, BEHIND = 60, 3, 4


@pytest.fixture
def made(tokenizer, tmp_path):
    """A recipe of few windows on the disk, the windows of the run, and the row it is at when all are made."""
    files = [write_texts(tmp_path / f"{name}.jsonl", first, 22) for name, first in (("a", 0), ("b", 100), ("c", 200))]
    sizes = {"rows": ROWS, "shard_tokens": 30, "window_tokens": 60}
    build(whole := recipe_of(tokenizer, tmp_path / "all", files, **sizes), lambda: 0)
    (store,) = whole.stores()
    store.refresh()
    order = whole.order(lambda word, number: dict(enumerate(store.shards)).get(number))
    row = order.window(order.window_at(ROWS - 1).number - KEPT).end
    recipe = recipe_of(tokenizer, tmp_path, files, **sizes, keep_windows=KEPT, behind=BEHIND)
    build(recipe, lambda: row)
    return recipe, order, row


def present(recipe):
    (store,) = recipe.stores()
    return {int(path.name[-6:]) for path in store.folder.glob("shard-??????")}


def needed(order, first, end):
    windows = range(order.window_at(first).number, order.window_at(end - 1).number + 1)
    return {part.shard.number for number in windows for part in order.window(number).parts}


def test_who_takes_over_makes_and_removes_nothing_that_is_needed(made, monkeypatch):
    """As the second machine does when the first one's work is done and both still read the last windows."""
    recipe, order, row = made
    was = present(recipe)
    # More than a window of the past one and of the future ones; and the beginning is gone.
    assert len(needed(order, row, ROWS)) > 4
    assert needed(order, row - BEHIND, ROWS) <= was
    assert 0 not in was
    kept = []
    remove_but = ShardStore.remove_but
    monkeypatch.setattr(
        ShardStore, "remove_but", lambda self, numbers: (kept.append(numbers), remove_but(self, numbers))
    )
    monkeypatch.setattr(ShardStore, "rewrite", lambda *_: pytest.fail("a shard is made again that was there"))
    build(recipe, lambda: row)
    assert present(recipe) == was
    assert kept
    assert all(needed(order, row - BEHIND, ROWS) <= numbers for numbers in kept)


def test_a_run_that_resumes_at_an_earlier_row_keeps_no_more_than_the_disk_may_hold(made):
    recipe, order, _ = made
    start = order.window(1).start
    build(dataclasses.replace(recipe, rows=start + 1), lambda: start)
    now = present(recipe)
    assert needed(order, start - BEHIND, start + 1) <= now
    # And the one that the order reads ahead.
    assert now <= needed(order, start - BEHIND, order.window(1 + KEPT).end) | {max(now)}
