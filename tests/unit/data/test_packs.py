"""Packs and padded batches, worked out by hand: tokens, positions, segments and targets."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from minimind.data.packs import join, pack, pad
from minimind.data.table import PreferencePair


def preference(chosen: str, rejected: str, prefix: int, line: int) -> PreferencePair:
    """A pair from words: a number is a token, `*` behind it says that it counts."""

    def half(words: str):
        tokens = [int(word.rstrip("*")) for word in words.split()]
        return np.array(tokens, np.int32), np.array([word.endswith("*") for word in words.split()], np.uint8)

    (chosen_tokens, chosen_mask), (rejected_tokens, rejected_mask) = half(chosen), half(rejected)
    return PreferencePair(
        chosen=chosen_tokens,
        rejected=rejected_tokens,
        chosen_mask=chosen_mask,
        rejected_mask=rejected_mask,
        prefix=prefix,
        line=line,
    )


# A has an earlier answer (7) in the prefix. Its inputs, each half without its last token:
#     5 6 7 8 | 20 | 30 31           at places 0 to 6
# Targets: 7 is predicted by place 1; 20 by the prefix's end, place 3, and 21 by 20 at place 4;
#          30 by the prefix's end as well, 31 by 30 at place 5, 32 by 31 at place 6.
A = preference("5 6 7* 8 20* 21*", "5 6 7* 8 30* 31* 32*", prefix=4, line=1)
# B's chosen half is a prefix of the rejected. Its last token, 13, is never an input of that half, so only 11
# 12 are shared: 11 12 | | 13                   at places 7 to 9 behind A Targets: 12 by place 7; chosen's 13
# by place 8; rejected's 13 by place 8, its 14 by place 9.
B = preference("11 12* 13*", "11 12* 13* 14*", prefix=3, line=4)


def test_pack_by_hand():
    batch = pack([A, B])
    assert batch.token_ids.tolist() == [5, 6, 7, 8, 20, 30, 31, 11, 12, 13]
    assert batch.position_ids.tolist() == [0, 1, 2, 3, 4, 4, 5, 0, 1, 2]
    assert batch.segments == ((4, 1, 2), (2, 0, 1))
    assert batch.target_positions.tolist() == [1, 3, 4, 3, 5, 6, 7, 8, 8, 9]
    assert batch.target_ids.tolist() == [7, 20, 21, 30, 31, 32, 12, 13, 13, 14]
    assert batch.target_counts.tolist() == [[1, 2, 3], [1, 1, 2]]
    assert batch.row_tokens == 6 + 7 + 3 + 4
    assert batch.lines == (1, 4)
    assert batch.num_pairs == 2


def test_pack_without_sharing_by_hand():
    """Each half whole: 5 6 7 8 20 | 5 6 7 8 30 31, then 11 12 | 11 12 13."""
    batch = pack([A, B], share_prefix=False)
    assert batch.token_ids.tolist() == [5, 6, 7, 8, 20, 5, 6, 7, 8, 30, 31, 11, 12, 11, 12, 13]
    assert batch.position_ids.tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 5, 0, 1, 0, 1, 2]
    assert batch.segments == ((0, 5, 6), (0, 2, 3))
    assert batch.target_positions.tolist() == [1, 3, 4, 6, 8, 9, 10, 11, 12, 13, 14, 15]
    assert batch.target_ids.tolist() == [7, 20, 21, 7, 30, 31, 32, 12, 13, 12, 13, 14]
    assert batch.target_counts.tolist() == [[0, 3, 4], [0, 2, 3]]


def test_pad_by_hand():
    """Four rows of six, the longest; a target in the prefix is taken from the chosen row."""
    batch = pad([A, B], pad_id=99)
    assert batch.token_ids.tolist() == [
        [5, 6, 7, 8, 20, 99],
        [5, 6, 7, 8, 30, 31],
        [11, 12, 99, 99, 99, 99],
        [11, 12, 13, 99, 99, 99],
    ]
    assert batch.attention_mask.sum(1).tolist() == [5, 6, 2, 3]
    assert torch.equal(batch.attention_mask == 0, batch.token_ids == 99)
    # A: 7 by place 1, 20 and 21 by 3 and 4; the second row starts at 6. B's rows start at 12 and 18.
    assert batch.target_positions.tolist() == [1, 3, 4, 9, 10, 11, 12, 13, 19, 20]
    assert batch.target_ids.tolist() == [7, 20, 21, 30, 31, 32, 12, 13, 13, 14]
    assert batch.target_counts.tolist() == [[1, 2, 3], [1, 1, 2]]
    assert batch.row_tokens == 20


def test_rejected_as_a_prefix_of_chosen():
    """Mirrored B: 11 12 | 13 | and nothing of rejected's own."""
    batch = pack([preference("11 12* 13* 14*", "11 12* 13*", prefix=3, line=1)])
    assert batch.token_ids.tolist() == [11, 12, 13]
    assert batch.segments == ((2, 1, 0),)
    # 12 by place 0; chosen's 13 by 1, 14 by 2; rejected's 13 by 1
    assert batch.target_positions.tolist() == [0, 1, 2, 1]
    assert batch.target_ids.tolist() == [12, 13, 14, 13]
    assert batch.target_counts.tolist() == [[1, 2, 1]]


def test_nothing_shared():
    batch = pack([preference("1 2* 3*", "4 5*", prefix=0, line=1)])
    assert batch.token_ids.tolist() == [1, 2, 4]
    assert batch.position_ids.tolist() == [0, 1, 0]
    assert batch.segments == ((0, 2, 1),)
    assert batch.target_positions.tolist() == [0, 1, 2]
    assert batch.target_ids.tolist() == [2, 3, 5]


@pytest.mark.parametrize("layout", [pack, pad])
def test_a_row_first_token_is_never_a_target(layout):
    """Nothing predicts it; MiniMind's mask of y leaves it out as well."""
    batch = layout([preference("1* 2* 3*", "4* 5*", prefix=0, line=1)])
    assert batch.target_ids.tolist() == [2, 3, 5]


@pytest.mark.parametrize("layout", [pack, pad])
def test_halves_that_truncation_made_equal(layout):
    """Kept by --on_bad_row keep: 1 2 is shared, and the last token, 3, is a target of each half at the same
    place."""
    batch = layout([preference("1 2 3*", "1 2 3*", prefix=3, line=1)])
    assert batch.target_ids.tolist() == [3, 3]
    assert batch.target_counts.tolist() == [[0, 1, 1]]


@pytest.mark.parametrize("layout", [pack, pad])
def test_a_batch_without_targets(layout):
    batch = layout([preference("1 2 3", "1 2 4", prefix=2, line=1)])
    assert batch.target_ids.shape == (0,)
    assert batch.target_ids.dtype == torch.int64
    assert batch.target_counts.tolist() == [[0, 0, 0]]


@pytest.mark.parametrize("layout", [pack, pad])
def test_every_tensor_is_int64_as_embeddings_and_gathers_want_it(layout):
    batch = layout([A, B])
    tensors = [value for value in vars(batch).values() if isinstance(value, torch.Tensor)]
    assert len(tensors) == 5
    assert {tensor.dtype for tensor in tensors} == {torch.int64}


@pytest.mark.parametrize("layout", [pack, pad])
def test_to_device_moves_every_tensor_and_keeps_the_rest(layout):
    batch = layout([A, B])
    moved = batch.to_device(torch.device("meta"))
    assert type(moved) is type(batch)
    for name, value in vars(batch).items():
        if isinstance(value, torch.Tensor):
            assert getattr(moved, name).device.type == "meta"
        else:
            assert getattr(moved, name) == value


def test_joined_packs_are_the_pack_of_all_pairs():
    joined, whole = join([pack([A, B]), pack([A])]), pack([A, B, A])
    for field in dataclasses.fields(whole):
        mine, expected = getattr(joined, field.name), getattr(whole, field.name)
        assert torch.equal(mine, expected) if isinstance(mine, torch.Tensor) else mine == expected
