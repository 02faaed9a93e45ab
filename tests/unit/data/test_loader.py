"""Building batches ahead: the sampler's order, errors of the thread, and evaluation with every pair once."""

from __future__ import annotations

import json
import threading

import pytest
import torch

from minimind.data.loader import eval_batches, train_batches
from minimind.data.mix import Mix
from minimind.data.packs import pack
from minimind.data.sampler import PairSampler
from minimind.data.sources import open_source
from minimind.data.table import PairTable
from minimind.data.table_cache import load_table
from tests.conftest import pair

COUNT = 11


@pytest.fixture(scope="module")
def table(tokenizer, tmp_path_factory) -> PairTable:
    folder = tmp_path_factory.mktemp("loader")
    path = folder / "pairs.jsonl"
    path.write_text("\n".join(json.dumps(pair(f"Number {i}?", "Yes.", "No!")) for i in range(COUNT)))
    return load_table(open_source(path), tokenizer, max_length=64, num_workers=0, cache_dir=folder / "cache")


@pytest.fixture(scope="module")
def sampler() -> PairSampler:
    return PairSampler(
        mix=Mix.plain(COUNT),
        epochs=4,
        micro_batch_size=2,
        accumulation_steps=2,
        world_size=2,
        shuffle=True,
        seed=3,
    )


def builder_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "batches"]


@pytest.mark.parametrize("rank", [0, 1])
def test_batches_follow_the_order_of_the_sampler(table, sampler, rank):
    assert sampler.total_steps == 5
    steps = list(train_batches(table, sampler, pack, rank=rank, start=1, end=5))
    indices = [[list(batch.indices) for batch in batches] for batches in steps]
    assert indices == [sampler.micro_batches(step, rank) for step in range(1, 6)]


def test_start_in_the_middle_gives_the_remaining_steps(table, sampler):
    whole = list(train_batches(table, sampler, pack, rank=0, start=1, end=5))
    rest = list(train_batches(table, sampler, pack, rank=0, start=4, end=5))
    assert [[b.indices for b in step] for step in rest] == [[b.indices for b in step] for step in whole[3:]]


def test_start_after_the_end_gives_no_step(table, sampler):
    assert list(train_batches(table, sampler, pack, rank=0, start=6, end=5)) == []


def test_error_in_the_thread_is_raised_at_its_step(table, sampler):
    calls = []

    def layout(pairs):
        calls.append(len(pairs))
        if len(calls) == 5:  # two micro-batches a step: the first of step 3
            raise ValueError("no batch of this pair")
        return pack(pairs)

    batches = train_batches(table, sampler, layout, rank=0, start=1, end=5)
    assert len(next(batches)) == 2
    assert len(next(batches)) == 2
    with pytest.raises(ValueError, match="no batch of this pair"):
        next(batches)
    assert builder_threads() == []


@pytest.mark.parametrize("pin", [False, True])
def test_thread_pins_batches_for_a_gpu(table, sampler, pin, monkeypatch):
    """Without a GPU torch cannot pin memory, so a replacement of `pin_memory` records thread and tensor."""
    recorded = []

    def pin_memory(tensor):
        recorded.append((threading.current_thread().name, tensor))
        return tensor.clone()

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin_memory)
    ((first, second),) = train_batches(table, sampler, pack, rank=0, start=1, end=1, pin=pin)
    # Token ids, positions, target positions, ids and counts, of two micro-batches.
    assert len(recorded) == (2 * 5 if pin else 0)
    assert {thread for thread, _ in recorded} == ({"batches"} if pin else set())
    plain = next(train_batches(table, sampler, pack, rank=0, start=1, end=1))
    for batch, expected in zip((first, second), plain, strict=True):
        assert torch.equal(batch.token_ids, expected.token_ids)
        assert all(batch.token_ids is not tensor for _, tensor in recorded)
        assert batch.indices == expected.indices
    recorded.clear()
    held_out = list(eval_batches(table, pack, batch_size=4, rank=0, world_size=1, pin=pin))
    assert len(recorded) == (len(held_out) * 5 if pin else 0)
    assert {thread for thread, _ in recorded} == ({"batches"} if pin else set())


def test_closing_the_iterator_ends_the_thread(table, sampler):
    batches = train_batches(table, sampler, pack, rank=0, start=1, end=5)
    next(batches)
    assert len(builder_threads()) == 1
    batches.close()
    assert builder_threads() == []


def test_two_steps_are_built_ahead(table, sampler):
    """The thread waits for the consumer: otherwise memory would hold the batches of the whole run."""
    built = []

    def layout(pairs):
        built.append(len(pairs))
        return pack(pairs)

    batches = train_batches(table, sampler, layout, rank=0, start=1, end=5)
    next(batches)
    # 1 step is consumed, 2 are in the queue, and the thread holds one more. Each has two micro-batches.
    (thread,) = builder_threads()
    thread.join(timeout=0.3)
    assert thread.is_alive()
    assert len(built) <= 2 * 4
    batches.close()


@pytest.mark.parametrize("batch_size", [1, 2, 4, 16])
@pytest.mark.parametrize("world_size", [1, 2, 3, 5, 16])
def test_evaluation_counts_every_pair_once(table, batch_size, world_size):
    ranks = [
        list(eval_batches(table, pack, batch_size=batch_size, rank=rank, world_size=world_size))
        for rank in range(world_size)
    ]
    # All ranks run the same number of forwards, or ZeRO-3 hangs.
    assert len({len(batches) for batches in ranks}) == 1
    counts = dict.fromkeys(range(COUNT), 0.0)
    for batch, weights in (item for batches in ranks for item in batches):
        assert len(weights) == batch.num_pairs <= batch_size
        for index, weight in zip(batch.indices, weights, strict=True):
            counts[index] += weight
    assert set(counts.values()) == {1.0}


@pytest.mark.parametrize("world_size", [1, 3])
def test_evaluation_of_a_part_counts_its_pairs_alone(table, world_size):
    part, counted = range(2, 7), []
    for rank in range(world_size):
        for batch, weights in eval_batches(table, pack, batch_size=2, rank=rank, world_size=world_size, part=part):
            assert set(batch.indices) <= set(part)
            counted += [index for index, weight in zip(batch.indices, weights, strict=True) if weight]
    assert sorted(counted) == list(part)
