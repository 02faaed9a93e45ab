"""The order of pairs: every pair once an epoch, whatever the ranks, and any step without walking there."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from minimind.data.sampler import PairSampler

BASE = PairSampler(num_pairs=24, epochs=2, micro_batch_size=2, accumulation_steps=3, world_size=2, shuffle=True, seed=1)


def step_pairs(stream: PairSampler, step: int) -> list[int]:
    """Pairs of one global step in the order of the stream: micro-batch by micro-batch, rank by rank."""
    ranks = [stream.micro_batches(step, rank) for rank in range(stream.world_size)]
    return [pair for micro in range(stream.accumulation_steps) for rank in ranks for pair in rank[micro]]


def all_pairs(stream: PairSampler) -> list[int]:
    return [pair for step in range(1, stream.total_steps + 1) for pair in step_pairs(stream, step)]


def test_without_shuffling_by_hand():
    """8 pairs, 2 ranks, 2 micro-batches of 2: one step takes all, dealt micro-batch by micro-batch."""
    stream = dataclasses.replace(BASE, num_pairs=8, epochs=1, accumulation_steps=2, shuffle=False)
    assert stream.total_steps == 1
    assert stream.micro_batches(1, rank=0) == [[0, 1], [4, 5]]
    assert stream.micro_batches(1, rank=1) == [[2, 3], [6, 7]]


@pytest.mark.parametrize("shuffle", [True, False])
def test_an_epoch_has_every_pair_once(shuffle):
    """24 pairs are two global batches of 12, so two steps are an epoch."""
    pairs = all_pairs(dataclasses.replace(BASE, shuffle=shuffle))
    assert len(pairs) == 48
    assert sorted(pairs[:24]) == list(range(24))
    assert sorted(pairs[24:]) == list(range(24))


def test_epochs_have_different_orders_and_the_seed_decides():
    pairs = all_pairs(BASE)
    assert pairs[:24] != pairs[24:]
    assert pairs[:24] != list(range(24))
    assert all_pairs(dataclasses.replace(BASE)) == pairs
    assert all_pairs(dataclasses.replace(BASE, seed=2)) != pairs


@pytest.mark.parametrize(
    ("micro_batch_size", "accumulation_steps", "world_size"),
    [(12, 1, 1), (3, 1, 4), (3, 4, 1), (1, 12, 1), (1, 1, 12), (6, 1, 2), (2, 2, 3)],
)
def test_the_order_does_not_depend_on_how_a_global_batch_is_dealt(micro_batch_size, accumulation_steps, world_size):
    """All of these are global batches of 12: the same pairs in the same step."""
    other = dataclasses.replace(
        BASE, micro_batch_size=micro_batch_size, accumulation_steps=accumulation_steps, world_size=world_size
    )
    assert other.global_batch_size == 12
    assert [step_pairs(other, step) for step in range(1, 5)] == [step_pairs(BASE, step) for step in range(1, 5)]


def test_a_step_that_spans_two_epochs():
    """10 pairs, global batches of 4: step 3 takes the last two of the first epoch and two of the second."""
    stream = PairSampler(
        num_pairs=10, epochs=2, micro_batch_size=4, accumulation_steps=1, world_size=1, shuffle=False, seed=0
    )
    assert stream.micro_batches(3, rank=0) == [[8, 9, 0, 1]]


@pytest.mark.parametrize(
    ("num_pairs", "epochs", "steps", "left_over"),
    [(24, 2, 4, 0), (25, 1, 2, 1), (25, 2, 4, 2), (11, 1, 0, 11), (6, 2, 1, 0), (5, 7, 2, 11)],
)
def test_only_full_global_batches_are_steps(num_pairs, epochs, steps, left_over):
    stream = dataclasses.replace(BASE, num_pairs=num_pairs, epochs=epochs)
    assert (stream.total_steps, stream.left_over) == (steps, left_over)
    assert len(all_pairs(stream)) + stream.left_over == num_pairs * epochs


def test_going_on_needs_nothing_but_the_step():
    """A fresh stream asked for step 4 first gives what one that came from step 1 gives."""
    walked = [BASE.micro_batches(step, rank=1) for step in range(1, 5)]
    fresh = dataclasses.replace(BASE)
    assert fresh.micro_batches(4, rank=1) == walked[3]
    assert fresh.micro_batches(2, rank=1) == walked[1]


def test_more_epochs_leave_the_first_ones_as_they_were():
    assert all_pairs(dataclasses.replace(BASE, epochs=5))[:48] == all_pairs(BASE)


def test_epoch_of_a_step():
    # steps of 12 of 24 pairs
    assert [BASE.epoch_of(step) for step in (1, 2, 3)] == [0.5, 1.0, 1.5]


def test_dealing_by_cost_balances_every_micro_batch_and_moves_no_pair_to_another_step():
    """12 pairs of cost 1 to 12, 2 ranks x 3 micro-batches of 2: 12 + 1, 11 + 2, ... cost 13 each."""
    costs = np.arange(1.0, 13.0)
    plain = dataclasses.replace(BASE, num_pairs=12, epochs=1)
    dealt = dataclasses.replace(plain, costs=costs)
    assert sorted(step_pairs(dealt, 1)) == sorted(step_pairs(plain, 1))
    for rank in range(2):
        assert [sum(costs[pair] for pair in hand) for hand in dealt.micro_batches(1, rank)] == [13.0] * 3
        assert [len(hand) for hand in dealt.micro_batches(1, rank)] == [2] * 3


def test_a_single_hand_is_the_batch_in_its_order():
    stream = dataclasses.replace(BASE, micro_batch_size=12, accumulation_steps=1, world_size=1)
    dealt = dataclasses.replace(stream, costs=np.arange(24.0))
    assert dealt.micro_batches(2, 0) == stream.micro_batches(2, 0)


def by_tokens(tokens: np.ndarray, budget: int, **fields: object) -> PairSampler:
    """A stream whose pairs cost as many as they have tokens."""
    return dataclasses.replace(BASE, costs=tokens.astype(float), tokens=tokens, token_budget=budget, **fields)


def test_a_token_budget_by_hand():
    """One rank, 6 pairs of 5, 4, 3, 3, 2, 1 tokens, at most 9 in a micro-batch: two of 9, dealt to the emptier one:
    5 | 4, then 3 to the second, 3 to the first, and so on."""
    tokens = np.array([5, 4, 3, 3, 2, 1])
    fields = {"num_pairs": 6, "epochs": 1, "accumulation_steps": 3, "world_size": 1, "shuffle": False}
    assert by_tokens(tokens, 9, **fields).micro_batches(1, 0) == [[0, 3, 5], [1, 2, 4]]
    assert by_tokens(tokens, 18, **fields).micro_batches(1, 0) == [[0, 1, 2, 3, 4, 5]]
    # Too small for anything: every pair stands alone, the dearest first.
    assert by_tokens(tokens, 1, **fields).micro_batches(1, 0) == [[0], [1], [2], [3], [4], [5]]


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("budget", [1, 40, 64, 100, 1000])
@pytest.mark.parametrize("seed", range(5))
def test_a_token_budget_keeps_each_step_s_pairs_and_every_rank_in_time(world_size, budget, seed):
    tokens = np.random.default_rng(seed).integers(4, 70, 120)
    fixed = dataclasses.replace(BASE, num_pairs=120, epochs=1, micro_batch_size=4, world_size=world_size)
    stream = by_tokens(tokens, budget, num_pairs=120, epochs=1, micro_batch_size=4, world_size=world_size)
    assert stream.total_steps == fixed.total_steps
    for step in range(1, stream.total_steps + 1):
        ranks = [stream.micro_batches(step, rank) for rank in range(world_size)]
        assert sorted(pair for parts in ranks for part in parts for pair in part) == sorted(step_pairs(fixed, step))
        # As many pairs and as many micro-batches on every rank: their mean is the mean, and nobody waits for ever.
        assert {sum(map(len, parts)) for parts in ranks} == {12}
        assert len({len(parts) for parts in ranks}) == 1
        assert all(part for parts in ranks for part in parts)
        assert all(len(part) == 1 or tokens[part].sum() <= budget for parts in ranks for part in parts)
        # Ranks cost about the same, and so do the micro-batches that run together.
        totals = [sum(tokens[part].sum() for part in parts) for parts in ranks]
        assert max(totals) - min(totals) <= 70
        for together in zip(*ranks, strict=True):
            costs = [tokens[part].sum() for part in together]
            assert max(costs) - min(costs) <= 70


def test_a_token_budget_wastes_little():
    """No more micro-batches than one over what the tokens alone would need, where pairs are small beside the budget."""
    tokens = np.random.default_rng(0).integers(4, 70, 120)
    stream = by_tokens(tokens, 400, num_pairs=120, epochs=1, micro_batch_size=20, world_size=2)
    parts = [stream.micro_batches(1, rank) for rank in range(2)]
    fullest = max(sum(tokens[part].sum() for part in rank) for rank in parts)
    assert len(parts[0]) <= fullest / 400 + 2


def test_a_token_budget_needs_nothing_but_the_step():
    tokens = np.arange(4, 28)
    walked = [by_tokens(tokens, 60).micro_batches(step, rank=1) for step in range(1, 5)]
    assert by_tokens(tokens, 60).micro_batches(4, rank=1) == walked[3]


def test_place_in_the_stream_is_the_same_for_any_ranks_and_no_other_stream():
    def place(step, **changes):
        given = {"num_pairs": 10, "epochs": 3, "micro_batch_size": 2, "accumulation_steps": 1, "world_size": 2}
        return PairSampler(**{**given, "shuffle": True, "seed": 1, **changes}).position_after(step)

    assert place(3)["pairs"] == 12
    assert place(3) == place(3, world_size=1, accumulation_steps=2) == place(3, micro_batch_size=4, world_size=1)
    assert place(3)["last"] != place(3, seed=2)["last"]
    assert place(3)["last"] != place(4)["last"]
    assert place(3)["last"] != place(3, num_pairs=11)["last"]
    # No shuffle, no other first batch: but another size of it.
    assert place(1, shuffle=False) == place(1, shuffle=False, seed=2) != place(1, shuffle=False, world_size=4)
