"""The reference's log-probs on disk: what a kill, damage, another run at the same time or another cache can do to them.

The reference is a stand-in whose sums are made of the pairs' numbers, so that every number can be told.
"""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist

from minimind.data.packs import pack
from minimind.data.pair_tables import PairTables
from minimind.data.sources import open_source
from minimind.data.table import PairTable
from minimind.data.table_cache import load_table
from minimind.engine.reference_cache import CachedReference, ReferenceCache
from minimind.engine.reference_records import RECORD, read_records, seal_records
from minimind.errors import DataError, TrainingError
from minimind.model.device_transfer import HostCopy
from minimind.objective.rows import ReferenceScores
from minimind.ranks.world import World
from tests.conftest import pair
from tests.forked import forked

COUNT = 11
WORLD = World(rank=0, local_rank=0, size=1, device=torch.device("cpu"))
ABOUT = {"weights": "0123", "dtype": "float32", "layout": "packed"}


class StandIn:
    """Scores pair n, from 1, as -n and -n - 0.5, plus `shift`; remembers which pairs it has scored, from 0."""

    def __init__(self, pairs_per_forward: int = 2, shift: float = 0.0) -> None:
        self.pairs_per_forward, self.shift = pairs_per_forward, shift
        self.scored: list[int] = []

    def score(self, batches, per_token=False):
        self.scored += [index for batch in batches for index in batch.indices]
        rows = ([[-index - 1, -index - 1.5] for index in batch.indices] for batch in batches)
        return [ReferenceScores(sums=torch.tensor(sums) + self.shift) for sums in rows]


@pytest.fixture(scope="module")
def table(tokenizer, tmp_path_factory) -> PairTable:
    """Pairs of growing length."""
    folder = tmp_path_factory.mktemp("cache")
    path = folder / "pairs.jsonl"
    rows = [pair(f"Number {i}?", "Yes. " * (i + 1), "No!" * (2 * i + 1)) for i in range(COUNT)]
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return load_table(open_source(path), tokenizer, max_length=256, num_workers=0, cache_dir=folder / "t")


@pytest.fixture
def opened(one_rank, table, tmp_path):
    """Opens the cache as a run does."""
    return lambda about=ABOUT, pairs=table: ReferenceCache(tmp_path / "cache", pairs, about, WORLD)


def filled(cache: ReferenceCache, reference: StandIn | None = None) -> list[int]:
    return list(cache.fill(reference or StandIn(), pack))


def expected(table: PairTable) -> np.ndarray:
    numbers = np.arange(1, len(table.lines) + 1)
    return np.stack((-numbers, -numbers - 0.5), axis=1).astype(np.float32)


def test_what_was_scored_is_there_for_the_next_run(opened, table):
    first = opened()
    assert (first.num_known, len(first)) == (0, COUNT)
    reference = StandIn(pairs_per_forward=4)
    assert filled(first, reference) == [4, 8, 11]
    assert sorted(reference.scored) == list(range(COUNT))
    again = opened()
    assert again.num_known == COUNT
    np.testing.assert_array_equal(again.sums, expected(table))
    assert sorted(path.name for path in again.folder.iterdir()) == ["about.json", "rows.bin"]
    assert json.loads((again.folder / "about.json").read_text()) == {"format": 2, "pairs": table.key, **ABOUT}
    # Nothing is missing, so nothing is scored.
    reference = StandIn()
    assert filled(again, reference) == []
    assert reference.scored == []


def test_a_forward_is_enqueued_before_the_sums_of_the_one_before_are_read(opened, monkeypatch):
    calls = []

    class Recorder(StandIn):
        def score(self, batches, per_token=False):
            calls.append("forward")
            return super().score(batches)

    read = HostCopy.numpy
    monkeypatch.setattr(HostCopy, "numpy", lambda self: calls.append("read") or read(self))
    filled(opened(), Recorder(pairs_per_forward=4))
    assert calls == ["forward", "forward", "read", "forward", "read", "read"]


def test_a_step_finds_its_pairs_by_their_indices(opened, table):
    cache = opened()
    filled(cache)
    reference = CachedReference([cache], WORLD.device)
    one, other = (scores.sums for scores in reference.score([pack([table[7], table[2]]), pack([table[10]])]))
    assert one.dtype == torch.float32
    assert one.tolist() == [[-8.0, -8.5], [-3.0, -3.5]]
    assert other.tolist() == [[-11.0, -11.5]]


def test_caches_of_several_sources_are_one_reference(opened, table):
    """The second source has the pairs of the first, of which it selects two."""
    other = dataclasses.replace(table, key="other", selected=np.array([3, 8]))
    caches = [opened(), opened(ABOUT, other)]
    for cache in caches:
        filled(cache)
    tables = PairTables(tables=(table, other))
    reference = CachedReference(caches, WORLD.device)
    (scores,) = reference.score([pack([tables[10], tables[11], tables[12]])])
    assert scores.sums.tolist() == [[-11.0, -11.5], [-4.0, -4.5], [-9.0, -9.5]]
    with pytest.raises(AssertionError, match="was not scored"):
        reference.score([dataclasses.replace(pack([table[0]]), indices=(COUNT,))])
    for index, folder in ((0, caches[0].folder), (10, caches[0].folder), (11, caches[1].folder)):
        message = reference.mismatch(0.25, index, "a.jsonl, line 8", None)
        assert message.startswith(f"{folder}: the cached reference log-probs of a.jsonl, line 8 differ by 0.25")


def test_counts_are_the_targets_of_each_row(opened, table):
    cache = opened()
    filled(cache)
    counts = pack([table[i] for i in range(COUNT)]).target_counts.numpy()
    rows = np.stack((counts[:, 0] + counts[:, 1], counts[:, 0] + counts[:, 2]), axis=1)
    np.testing.assert_array_equal(read_records(cache.folder / "rows.bin", cache.key)["counts"], rows)


@pytest.mark.parametrize(
    "change",
    [{"weights": "other"}, {"dtype": "bfloat16"}, {"layout": "padded"}, {"model.rope_theta": 1e4}],
    ids=str,
)
def test_another_reference_has_another_cache(opened, table, change):
    filled(opened())
    assert opened({**ABOUT, **change}).num_known == 0
    assert opened(ABOUT, dataclasses.replace(table, key="other")).num_known == 0
    assert opened().num_known == COUNT


def test_only_selected_pairs_are_scored_and_one_cache_serves_all_selections(opened, table):
    selection = dataclasses.replace(table, selected=np.array([3, 8]))
    reference = StandIn()
    assert filled(opened(ABOUT, selection), reference) == [2]
    assert sorted(reference.scored) == [3, 8]
    assert opened(ABOUT, selection).num_known == opened().num_known == 2
    # Numbers that are there stay, whatever another run would score.
    reference = StandIn(shift=2.0**-10)
    filled(opened(), reference)
    assert sorted(reference.scored) == [index for index in range(COUNT) if index not in (3, 8)]
    known = opened()
    assert known.num_known == COUNT
    np.testing.assert_array_equal(known.sums[[3, 8]], expected(table)[[3, 8]])
    assert sorted(path.name for path in known.folder.iterdir()) == ["about.json", "rows.bin"]


def test_a_torn_end_costs_the_last_record_alone(opened, table):
    cache = opened()
    filled(cache)
    whole = (cache.folder / "rows.bin").read_bytes()
    assert len(whole) == COUNT * RECORD.itemsize
    (cache.folder / "rows.bin").unlink()
    for missing in range(1, RECORD.itemsize + 1):
        (cache.folder / "part-1.bin").write_bytes(whole[: len(whole) - missing])
        assert opened().num_known == COUNT - 1
    reference = StandIn()
    filled(opened(), reference)
    assert reference.scored == [COUNT - 1]
    assert (cache.folder / "rows.bin").read_bytes() == whole


def test_a_damaged_byte_costs_its_pair_alone(opened, table):
    cache = opened()
    filled(cache)
    path = cache.folder / "rows.bin"
    whole = path.read_bytes()
    for place in range(0, len(whole), 5):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :])
        damaged = opened()
        assert np.flatnonzero(~damaged.known).tolist() == [place // RECORD.itemsize]
    reference = StandIn()
    filled(damaged, reference)
    assert reference.scored == [place // RECORD.itemsize]
    assert path.read_bytes() == whole


def test_records_of_another_cache_or_of_other_tokens_are_none(opened, table):
    cache = opened()
    filled(cache)
    other = opened({**ABOUT, "weights": "other"})
    other.folder.mkdir()
    (other.folder / "rows.bin").write_bytes((cache.folder / "rows.bin").read_bytes())
    assert opened({**ABOUT, "weights": "other"}).num_known == 0
    records = read_records(cache.folder / "rows.bin", cache.key)
    counts = records["counts"].copy()
    counts[4] += 1
    pairs = np.array([*range(COUNT - 1), 99])
    (cache.folder / "rows.bin").write_bytes(seal_records(pairs, records["sums"], counts, cache.key).tobytes())
    assert np.flatnonzero(~opened().known).tolist() == [4, 10]


def test_two_runs_at_once_end_with_the_same_numbers(opened, table):
    """Each writes a file of its own; whichever ends first decides, and the other takes its numbers over."""
    first, second = opened(), opened()
    steps = first.fill(StandIn(), pack), second.fill(StandIn(shift=2.0**-10), pack)
    for _ in range(4):
        for step in steps:
            next(step)
    assert len(list(first.folder.glob("part-*.bin"))) == 2
    # A third that comes now has what both have written.
    assert opened().num_known == 8
    for step in steps:
        list(step)
    for cache in (first, second, opened()):
        np.testing.assert_array_equal(cache.sums, expected(table))
    assert sorted(path.name for path in first.folder.iterdir()) == ["about.json", "rows.bin"]


def test_a_number_that_is_not_finite_is_named_and_not_kept(opened, table):
    cache = opened()
    with pytest.raises(
        TrainingError, match=r"not finite for 2 pairs of .*pairs\.jsonl, first in lines \d+, 11"
    ) as caught:
        filled(cache, StandIn(shift=float("nan")))
    assert caught.value.agreed
    assert opened().num_known == 0


def test_a_folder_that_cannot_be_written_is_said(opened, tmp_path):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(DataError, match="--cache_dir"):
        filled(opened())


def test_a_folder_that_is_taken_away_meanwhile_is_said(opened):
    cache = opened()
    cache._write = lambda *_: None
    cache.folder.mkdir(parents=True)
    with pytest.raises(DataError, match="cannot be read back; see --cache_dir") as caught:
        filled(cache)
    assert caught.value.agreed


@pytest.mark.parametrize("ranks", [1, 2, 3, 5, 16])
@pytest.mark.parametrize("pairs_per_forward", [1, 2, 4, 100])
def test_ranks_run_as_many_forwards_and_share_the_work(opened, table, ranks, pairs_per_forward):
    cache = opened()
    cache.known[[0, 5]] = True
    cache.world = dataclasses.replace(WORLD, size=ranks)
    rounds = list(cache._rounds(pairs_per_forward))
    assert all(len(hands) == ranks for hands in rounds)
    assert max(len(hand) for hands in rounds for hand in hands) <= pairs_per_forward
    dealt = [int(index) for hands in rounds for hand in hands for index in hand]
    assert sorted(dealt) == [index for index in range(COUNT) if index not in (0, 5)]
    assert len(rounds) == -(-len(dealt) // (pairs_per_forward * ranks))
    costs = [sum(table.costs[hand]) for hands in rounds for hand in hands]
    assert max(costs) - min(costs) <= max(table.costs)


def fill_slowly(folder, table):
    """As a run of one rank, in a process of its own."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/killed", rank=0, world_size=1)
    for _ in ReferenceCache(folder / "cache", table, ABOUT, WORLD).fill(StandIn(pairs_per_forward=1), pack):
        time.sleep(0.05)


def test_a_killed_run_leaves_what_it_has_scored(table, tmp_path, request):
    with forked(fill_slowly, tmp_path, table) as process:
        deadline = time.monotonic() + 120
        while sum(size(path) for path in (tmp_path / "cache").glob("*/part-*")) < 4 * RECORD.itemsize:
            assert time.monotonic() < deadline
            assert process.is_alive()
            time.sleep(0.005)
    # The group of this process is made after the fork, which none survives.
    opened = request.getfixturevalue("opened")
    cache = opened()
    there = cache.num_known
    assert 4 <= there < COUNT
    reference = StandIn()
    filled(cache, reference)
    assert len(reference.scored) == COUNT - there
    np.testing.assert_array_equal(opened().sums, expected(table))


def size(path: Path) -> int:
    return path.stat().st_size
