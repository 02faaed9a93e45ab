"""Packed and padded batches with expected values derived by hand: tokens, positions, segments, targets."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from minimind.data.packs import Batch, Segment, join, pack, pad, with_values
from minimind.data.table import PreferencePair


def preference(chosen: str, rejected: str, prefix: int, index: int) -> PreferencePair:
    """A pair from words: a number is a token, a `*` after it masks the token as a target."""

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
        index=index,
    )


# A has an earlier answer (7) in the prefix. Its inputs, each half without its last token:
#     5 6 7 8 | 20 | 30 31           at positions 0 to 6
# Targets: position 1 predicts 7. The prefix's last token, at position 3, predicts 20, and 20 at position 4 predicts 21.
#          The prefix's last token also predicts 30; 30 at position 5 predicts 31, and 31 at position 6 predicts 32.
A = preference("5 6 7* 8 20* 21*", "5 6 7* 8 30* 31* 32*", prefix=4, index=1)
# B's chosen half is a prefix of its rejected half. The last token of chosen, 13, is no input of chosen, so only 11 12
# are shared:
#     11 12 | | 13                   at positions 7 to 9, after A
# Targets: position 7 predicts 12. Position 8 predicts 13 of chosen and 13 of rejected, position 9 predicts 14.
B = preference("11 12* 13*", "11 12* 13* 14*", prefix=3, index=4)


def test_pack_by_hand():
    batch = pack([A, B])
    assert batch.token_ids.tolist() == [5, 6, 7, 8, 20, 30, 31, 11, 12, 13]
    assert batch.position_ids.tolist() == [0, 1, 2, 3, 4, 4, 5, 0, 1, 2]
    assert batch.segments == ((4, 1, 2), (2, 0, 1))
    assert batch.target_positions.tolist() == [1, 3, 4, 3, 5, 6, 7, 8, 8, 9]
    assert batch.target_ids.tolist() == [7, 20, 21, 30, 31, 32, 12, 13, 13, 14]
    assert batch.target_counts.tolist() == [[1, 2, 3], [1, 1, 2]]
    assert batch.row_tokens == 6 + 7 + 3 + 4
    assert batch.indices == (1, 4)
    assert batch.num_pairs == 2


def test_pack_without_shared_prefix_by_hand():
    """Both halves have the prefix: 5 6 7 8 20 | 5 6 7 8 30 31, then 11 12 | 11 12 13."""
    batch = pack([A, B], share_prefix=False)
    assert batch.token_ids.tolist() == [5, 6, 7, 8, 20, 5, 6, 7, 8, 30, 31, 11, 12, 11, 12, 13]
    assert batch.position_ids.tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 5, 0, 1, 0, 1, 2]
    assert batch.segments == ((0, 5, 6), (0, 2, 3))
    assert batch.target_positions.tolist() == [1, 3, 4, 6, 8, 9, 10, 11, 12, 13, 14, 15]
    assert batch.target_ids.tolist() == [7, 20, 21, 7, 30, 31, 32, 12, 13, 12, 13, 14]
    assert batch.target_counts.tolist() == [[0, 3, 4], [0, 2, 3]]


def test_pad_by_hand():
    """Four rows of length six, the longest; the chosen row predicts the targets in the prefix."""
    batch = pad([A, B], pad_id=99)
    assert batch.token_ids.tolist() == [
        [5, 6, 7, 8, 20, 99],
        [5, 6, 7, 8, 30, 31],
        [11, 12, 99, 99, 99, 99],
        [11, 12, 13, 99, 99, 99],
    ]
    assert batch.attention_mask.sum(1).tolist() == [5, 6, 2, 3]
    assert torch.equal(batch.attention_mask == 0, batch.token_ids == 99)
    # Position 1 of A's chosen row predicts 7; 3 and 4 predict 20 and 21. The other rows start at 6, 12 and 18.
    assert batch.target_positions.tolist() == [1, 3, 4, 9, 10, 11, 12, 13, 19, 20]
    assert batch.target_ids.tolist() == [7, 20, 21, 30, 31, 32, 12, 13, 13, 14]
    assert batch.target_counts.tolist() == [[1, 2, 3], [1, 1, 2]]
    assert batch.row_tokens == 20


def test_rejected_as_a_prefix_of_chosen():
    """B with the halves exchanged: 11 12 | 13 | and an empty rejected part."""
    batch = pack([preference("11 12* 13* 14*", "11 12* 13*", prefix=3, index=1)])
    assert batch.token_ids.tolist() == [11, 12, 13]
    assert batch.segments == ((2, 1, 0),)
    # Position 0 predicts 12, 1 predicts 13 of chosen, 2 predicts 14; 1 also predicts 13 of rejected.
    assert batch.target_positions.tolist() == [0, 1, 2, 1]
    assert batch.target_ids.tolist() == [12, 13, 14, 13]
    assert batch.target_counts.tolist() == [[1, 2, 1]]


def test_pair_without_a_common_prefix():
    batch = pack([preference("1 2* 3*", "4 5*", prefix=0, index=1)])
    assert batch.token_ids.tolist() == [1, 2, 4]
    assert batch.position_ids.tolist() == [0, 1, 0]
    assert batch.segments == ((0, 2, 1),)
    assert batch.target_positions.tolist() == [0, 1, 2]
    assert batch.target_ids.tolist() == [2, 3, 5]


@pytest.mark.parametrize("layout", [pack, pad])
def test_first_token_of_a_row_is_no_target(layout):
    """No token predicts it. MiniMind's mask, which is that of y, omits it as well."""
    batch = layout([preference("1* 2* 3*", "4* 5*", prefix=0, index=1)])
    assert batch.target_ids.tolist() == [2, 3, 5]


@pytest.mark.parametrize("layout", [pack, pad])
def test_halves_that_truncation_makes_equal(layout):
    """--on_bad_row keep trains on such pairs: 1 2 is shared, and 3 is a target of each half at the same position."""
    batch = layout([preference("1 2 3*", "1 2 3*", prefix=3, index=1)])
    assert batch.target_ids.tolist() == [3, 3]
    assert batch.target_counts.tolist() == [[0, 1, 1]]


@pytest.mark.parametrize("layout", [pack, pad])
def test_batch_without_targets(layout):
    batch = layout([preference("1 2 3", "1 2 4", prefix=2, index=1)])
    assert batch.target_ids.shape == (0,)
    assert batch.target_ids.dtype == torch.int64
    assert batch.target_counts.tolist() == [[0, 0, 0]]


@pytest.mark.parametrize("layout", [pack, pad])
def test_every_tensor_is_int64(layout):
    batch = layout([A, B])
    tensors = [value for value in vars(batch).values() if isinstance(value, torch.Tensor)]
    assert len(tensors) == 5
    assert {tensor.dtype for tensor in tensors} == {torch.int64}


@pytest.mark.parametrize("layout", [pack, pad])
def test_to_device_moves_every_tensor_and_keeps_other_values(layout):
    batch = layout([A, B])
    moved = batch.to_device(torch.device("meta"))
    assert type(moved) is type(batch)
    for name, value in vars(batch).items():
        if isinstance(value, torch.Tensor):
            assert getattr(moved, name).device.type == "meta"
        else:
            assert getattr(moved, name) == value


def test_pin_memory_pins_every_tensor(monkeypatch):
    """Without a GPU torch cannot pin memory, so a copy replaces it."""
    monkeypatch.setattr(torch.Tensor, "pin_memory", torch.Tensor.clone)
    batch = pack([A, B])
    pinned = batch.pin_memory()
    for name, value in vars(batch).items():
        copied = getattr(pinned, name)
        if isinstance(value, torch.Tensor):
            assert copied is not value
            assert torch.equal(copied, value)
        else:
            assert copied == value


def test_batch_of_another_job_needs_no_pairs():
    """Two single rows, 1 2 | 3 and 4 | 5: a job without pairs has the tokens, targets and indices of a batch only."""
    batch = Batch(
        token_ids=torch.tensor([1, 2, 4]),
        target_positions=torch.tensor([1, 2]),
        target_ids=torch.tensor([3, 5]),
        row_tokens=5,
        indices=(7, 9),
    )
    moved = batch.to_device(torch.device("meta"))
    assert type(moved) is Batch
    assert {tensor.device.type for tensor in (moved.token_ids, moved.target_positions, moved.target_ids)} == {"meta"}
    assert (moved.row_tokens, moved.indices) == (5, (7, 9))


def test_segments_have_named_parts():
    first, second = pack([A, B]).segments
    assert first == Segment(prefix=4, chosen=1, rejected=2)
    assert second == Segment(prefix=2, chosen=0, rejected=1)


def test_joined_packs_equal_the_pack_of_all_pairs():
    joined, whole = join([pack([A, B]), pack([A])]), pack([A, B, A])
    for field in dataclasses.fields(whole):
        mine, expected = getattr(joined, field.name), getattr(whole, field.name)
        assert torch.equal(mine, expected) if isinstance(mine, torch.Tensor) else mine == expected


@pytest.mark.parametrize("layout", [pack, pad])
def test_a_batch_without_tokens_keeps_what_a_loss_needs(layout):
    batch = layout([A, B])
    light = batch.without_tokens()
    assert (light.indices, light.row_tokens, light.num_pairs) == (batch.indices, batch.row_tokens, 2)
    assert torch.equal(light.target_counts, batch.target_counts)
    assert light.token_ids.numel() == light.target_ids.numel() == light.target_positions.numel() == 0


@pytest.mark.parametrize("layout", [pack, pad])
def test_rows_apart_are_those_of_the_pairs(layout):
    """Each row with all its tokens and targets, the other row without any."""
    assert layout([A, B]).halves is None
    batch = with_values(layout, halves=True)([A, B])
    for half, of_half in zip(("chosen", "rejected"), batch.halves, strict=True):
        rows = [getattr(one, half) for one in (A, B)]
        masks = [getattr(one, f"{half}_mask") for one in (A, B)]
        assert of_half.target_counts.tolist() == [[0, int(mask[1:].sum()), 0] for mask in masks]
        targets = [token for row, mask in zip(rows, masks, strict=True) for token in row[1:][mask[1:] > 0]]
        assert of_half.target_ids.tolist() == targets
        inputs = [token for row in rows for token in row[:-1]]
        found = of_half.token_ids if layout is pack else of_half.token_ids[of_half.attention_mask > 0]
        assert found.tolist() == inputs
    assert all(of_half.token_ids.is_meta for of_half in batch.to_device(torch.device("meta")).halves)
    light = batch.without_tokens().halves
    assert [of_half.token_ids.numel() for of_half in light] == [0, 0]
    assert torch.equal(light[1].target_counts, batch.halves[1].target_counts)


@pytest.mark.parametrize("layout", [pack, pad])
def test_scores_are_in_batches_for_losses_that_need_them(layout):
    pairs = [dataclasses.replace(A, scores=(8.5, 2.0)), B]
    assert layout(pairs).scores is None
    batch = with_values(layout, scores=True)(pairs)
    assert batch.scores.dtype == torch.float32
    assert batch.scores[0].tolist() == [8.5, 2.0]
    assert batch.scores[1].isnan().all()
    assert batch.without_tokens().scores is batch.scores
    assert batch.to_device(torch.device("meta")).scores.is_meta
    plain = layout(pairs)
    for field in dataclasses.fields(plain):
        if field.name != "scores":
            one, other = getattr(plain, field.name), getattr(batch, field.name)
            assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other
