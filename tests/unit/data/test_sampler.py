"""The order of pairs: every pair once per epoch, for any number of ranks, and any step without the earlier ones."""

from __future__ import annotations

import dataclasses
from fractions import Fraction

import numpy as np
import pytest

from minimind.data.mix import Mix
from minimind.data.sampler import PairSampler

BASE = PairSampler(
    mix=Mix.plain(24), epochs=2, micro_batch_size=2, accumulation_steps=3, world_size=2, shuffle=True, seed=1
)


def step_pairs(sampler: PairSampler, step: int) -> list[int]:
    """Pairs of one global step in their order: micro-batch by micro-batch, rank by rank."""
    ranks = [sampler.micro_batches(step, rank) for rank in range(sampler.world_size)]
    return [pair for micro in range(sampler.accumulation_steps) for rank in ranks for pair in rank[micro]]


def all_pairs(sampler: PairSampler) -> list[int]:
    return [pair for step in range(1, sampler.total_steps + 1) for pair in step_pairs(sampler, step)]


def test_a_single_source_has_the_order_that_it_always_had():
    """Another order would train other batches, and refuse the checkpoints of earlier runs."""
    order = [np.random.default_rng((1, epoch)).permutation(24).tolist() for epoch in range(2)]
    assert all_pairs(BASE) == order[0] + order[1]
    two = Mix(sizes=(20, 4), weights=(Fraction(1), Fraction(1)))
    assert all_pairs(dataclasses.replace(BASE, mix=two)) == order[0] + order[1]


def test_a_mix_is_shuffled_over_all_sources():
    """An epoch takes 4 of the first source twice, and 4 of the 8 of the second: one global batch."""
    sampler = dataclasses.replace(BASE, mix=Mix(sizes=(4, 8), weights=(Fraction(2), Fraction(1, 2))), epochs=4)
    assert (sampler.total_pairs, sampler.total_steps, sampler.left_over) == (48, 4, 0)
    assert [sampler.epoch_of(step) for step in range(1, 5)] == [1, 2, 3, 4]
    steps = [step_pairs(sampler, step) for step in range(1, 5)]
    for one, other in (steps[:2], steps[2:]):
        assert sorted(one + other) == sorted([*range(4)] * 4 + [*range(4, 12)])
        assert one != sorted(one)
    assert steps[:2] != steps[2:]
    assert step_pairs(dataclasses.replace(sampler, seed=2), 1) != steps[0]


def test_global_batches_lie_across_epochs_of_different_lengths():
    """7 pairs at a half are 3 and 4 pairs, in turn."""
    sampler = dataclasses.replace(
        BASE, mix=Mix(sizes=(7,), weights=(Fraction(1, 2),)), epochs=4, shuffle=False, micro_batch_size=5,
        accumulation_steps=1, world_size=1,
    )  # fmt: skip
    assert (sampler.total_steps, sampler.left_over) == (2, 4)
    assert all_pairs(sampler) == [0, 1, 2, 3, 4, 5, 6, 0, 1, 2]
    assert sampler.epoch_of(2) == 10 / 3.5


def test_without_shuffling_by_hand():
    """8 pairs, 2 ranks, 2 micro-batches of 2: one step has all pairs, in the order of micro-batches, then ranks."""
    sampler = dataclasses.replace(BASE, mix=Mix.plain(8), epochs=1, accumulation_steps=2, shuffle=False)
    assert sampler.total_steps == 1
    assert sampler.micro_batches(1, rank=0) == [[0, 1], [4, 5]]
    assert sampler.micro_batches(1, rank=1) == [[2, 3], [6, 7]]


@pytest.mark.parametrize("shuffle", [True, False])
def test_epoch_has_every_pair_once(shuffle):
    """24 pairs are two global batches of 12, so an epoch has two steps."""
    pairs = all_pairs(dataclasses.replace(BASE, shuffle=shuffle))
    assert len(pairs) == 48
    assert sorted(pairs[:24]) == list(range(24))
    assert sorted(pairs[24:]) == list(range(24))


def test_order_depends_on_epoch_and_seed():
    pairs = all_pairs(BASE)
    assert pairs[:24] != pairs[24:]
    assert pairs[:24] != list(range(24))
    assert all_pairs(dataclasses.replace(BASE)) == pairs
    assert all_pairs(dataclasses.replace(BASE, seed=2)) != pairs


@pytest.mark.parametrize(
    ("micro_batch_size", "accumulation_steps", "world_size"),
    [(12, 1, 1), (3, 1, 4), (3, 4, 1), (1, 12, 1), (1, 1, 12), (6, 1, 2), (2, 2, 3)],
)
def test_global_batches_do_not_depend_on_ranks_and_micro_batches(micro_batch_size, accumulation_steps, world_size):
    """All cases have global batches of 12, and the same pairs in the same step."""
    other = dataclasses.replace(
        BASE, micro_batch_size=micro_batch_size, accumulation_steps=accumulation_steps, world_size=world_size
    )
    assert other.global_batch_size == 12
    assert [step_pairs(other, step) for step in range(1, 5)] == [step_pairs(BASE, step) for step in range(1, 5)]


def test_step_across_two_epochs():
    """10 pairs, global batches of 4: step 3 has the last two pairs of the first epoch and two of the second."""
    sampler = PairSampler(
        mix=Mix.plain(10), epochs=2, micro_batch_size=4, accumulation_steps=1, world_size=1, shuffle=False, seed=0
    )
    assert sampler.micro_batches(3, rank=0) == [[8, 9, 0, 1]]


@pytest.mark.parametrize(
    ("num_pairs", "epochs", "steps", "left_over"),
    [(24, 2, 4, 0), (25, 1, 2, 1), (25, 2, 4, 2), (11, 1, 0, 11), (6, 2, 1, 0), (5, 7, 2, 11)],
)
def test_only_full_global_batches_are_steps(num_pairs, epochs, steps, left_over):
    sampler = dataclasses.replace(BASE, mix=Mix.plain(num_pairs), epochs=epochs)
    assert (sampler.total_steps, sampler.left_over) == (steps, left_over)
    assert len(all_pairs(sampler)) + sampler.left_over == num_pairs * epochs


def test_step_does_not_depend_on_earlier_calls():
    """A new sampler gives the same step 4 as one that has given steps 1 to 3."""
    in_order = [BASE.micro_batches(step, rank=1) for step in range(1, 5)]
    fresh = dataclasses.replace(BASE)
    assert fresh.micro_batches(4, rank=1) == in_order[3]
    assert fresh.micro_batches(2, rank=1) == in_order[1]


def test_more_epochs_do_not_change_the_first_ones():
    assert all_pairs(dataclasses.replace(BASE, epochs=5))[:48] == all_pairs(BASE)


def test_epoch_of_a_step():
    # steps of 12 of 24 pairs
    assert [BASE.epoch_of(step) for step in (1, 2, 3)] == [0.5, 1.0, 1.5]


def test_costs_balance_micro_batches_and_keep_global_batches():
    """12 pairs of cost 1 to 12, 2 ranks x 3 micro-batches of 2: 12 + 1, 11 + 2, ... cost 13 each."""
    costs = np.arange(1.0, 13.0)
    plain = dataclasses.replace(BASE, mix=Mix.plain(12), epochs=1)
    balanced = dataclasses.replace(plain, costs=costs)
    assert sorted(step_pairs(balanced, 1)) == sorted(step_pairs(plain, 1))
    for rank in range(2):
        assert [sum(costs[pair] for pair in group) for group in balanced.micro_batches(1, rank)] == [13.0] * 3
        assert [len(group) for group in balanced.micro_batches(1, rank)] == [2] * 3


def test_single_micro_batch_keeps_the_order():
    sampler = dataclasses.replace(BASE, micro_batch_size=12, accumulation_steps=1, world_size=1)
    balanced = dataclasses.replace(sampler, costs=np.arange(24.0))
    assert balanced.micro_batches(2, 0) == sampler.micro_batches(2, 0)


def by_tokens(tokens: np.ndarray, budget: int, **fields: object) -> PairSampler:
    """A sampler in which the cost of a pair is its number of tokens."""
    return dataclasses.replace(BASE, costs=tokens.astype(float), tokens=tokens, token_budget=budget, **fields)


def test_token_budget_by_hand():
    """One rank, 6 pairs of 5, 4, 3, 3, 2, 1 tokens, budget 9: two micro-batches of 9 tokens. Each pair goes to the one
    with fewer tokens: 5 to the first, 4 and 3 to the second, 3 to the first, and so on."""
    tokens = np.array([5, 4, 3, 3, 2, 1])
    fields = {"mix": Mix.plain(6), "epochs": 1, "accumulation_steps": 3, "world_size": 1, "shuffle": False}
    assert by_tokens(tokens, 9, **fields).micro_batches(1, 0) == [[0, 3, 5], [1, 2, 4]]
    assert by_tokens(tokens, 18, **fields).micro_batches(1, 0) == [[0, 1, 2, 3, 4, 5]]
    # Every pair exceeds the budget and gets its own micro-batch, the most expensive first.
    assert by_tokens(tokens, 1, **fields).micro_batches(1, 0) == [[0], [1], [2], [3], [4], [5]]


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("budget", [1, 40, 64, 100, 1000])
@pytest.mark.parametrize("seed", range(5))
def test_token_budget_keeps_global_batches_and_balances_ranks(world_size, budget, seed):
    tokens = np.random.default_rng(seed).integers(4, 70, 120)
    fixed = dataclasses.replace(BASE, mix=Mix.plain(120), epochs=1, micro_batch_size=4, world_size=world_size)
    sampler = by_tokens(tokens, budget, mix=Mix.plain(120), epochs=1, micro_batch_size=4, world_size=world_size)
    assert sampler.total_steps == fixed.total_steps
    for step in range(1, sampler.total_steps + 1):
        ranks = [sampler.micro_batches(step, rank) for rank in range(world_size)]
        assert sorted(pair for parts in ranks for part in parts for pair in part) == sorted(step_pairs(fixed, step))
        # All ranks have the same number of pairs, so the mean over ranks is the mean over pairs, and the same number of
        # micro-batches, so no rank waits for another one forever.
        assert {sum(map(len, parts)) for parts in ranks} == {12}
        assert len({len(parts) for parts in ranks}) == 1
        assert all(part for parts in ranks for part in parts)
        assert all(len(part) == 1 or tokens[part].sum() <= budget for parts in ranks for part in parts)
        # Costs differ by at most one pair (70 tokens) between ranks, and between micro-batches that run together.
        totals = [sum(tokens[part].sum() for part in parts) for parts in ranks]
        assert max(totals) - min(totals) <= 70
        for together in zip(*ranks, strict=True):
            costs = [tokens[part].sum() for part in together]
            assert max(costs) - min(costs) <= 70


def test_token_budget_is_used_well():
    """For pairs far below the budget, at most one micro-batch more than the number of tokens requires."""
    tokens = np.random.default_rng(0).integers(4, 70, 120)
    sampler = by_tokens(tokens, 400, mix=Mix.plain(120), epochs=1, micro_batch_size=20, world_size=2)
    parts = [sampler.micro_batches(1, rank) for rank in range(2)]
    fullest = max(sum(tokens[part].sum() for part in rank) for rank in parts)
    assert len(parts[0]) <= fullest / 400 + 2


def test_token_budget_step_does_not_depend_on_earlier_calls():
    tokens = np.arange(4, 28)
    in_order = [by_tokens(tokens, 60).micro_batches(step, rank=1) for step in range(1, 5)]
    assert by_tokens(tokens, 60).micro_batches(4, rank=1) == in_order[3]


def test_position_depends_on_the_global_batches_only():
    def position(step, **changes):
        given = {"mix": Mix.plain(10), "epochs": 3, "micro_batch_size": 2, "accumulation_steps": 1, "world_size": 2}
        return PairSampler(**{**given, "shuffle": True, "seed": 1, **changes}).position_after(step)

    assert position(3)["pairs"] == 12
    assert (
        position(3) == position(3, world_size=1, accumulation_steps=2) == position(3, micro_batch_size=4, world_size=1)
    )
    assert position(3)["last"] != position(3, seed=2)["last"]
    assert position(3)["last"] != position(4)["last"]
    assert position(3)["last"] != position(3, mix=Mix.plain(11))["last"]
    # Without shuffling the seed does not matter, but the size of the global batch does.
    assert position(1, shuffle=False) == position(1, shuffle=False, seed=2) != position(1, shuffle=False, world_size=4)
