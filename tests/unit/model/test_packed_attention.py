"""Attention over a pack equals plain attention with a dense mask."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from minimind.errors import PackError
from minimind.model import packed_attention as module
from minimind.model.packed_attention import BACKENDS, NATIVE, SDPA, PackSegments, packed_attention
from minimind.native import ops, torch_ops


def allowed(segments: tuple[tuple[int, int, int], ...]) -> torch.Tensor:
    """(T, T) mask by definition: keys of the same pair, not later, and no chosen keys for rejected queries."""
    who = [(pair, part) for pair, lengths in enumerate(segments) for part in range(3) for _ in range(lengths[part])]
    mask = torch.zeros(len(who), len(who), dtype=torch.bool)
    for i, (pair, part) in enumerate(who):
        for j, (other_pair, other_part) in enumerate(who[: i + 1]):
            mask[i, j] = pair == other_pair and not (part == 2 and other_part == 1)
    return mask


def naive(query, key, value, mask, scaling):
    groups = query.shape[1] // key.shape[1]
    out = torch.empty_like(query)
    for head in range(query.shape[1]):
        scores = query[0, head] @ key[0, head // groups].T * scaling
        out[0, head] = scores.masked_fill(~mask, -torch.inf).softmax(-1) @ value[0, head // groups]
    return out.transpose(1, 2)


@pytest.mark.parametrize(
    "segments",
    [
        ((4, 3, 2),),
        ((4, 3, 2), (1, 5, 6), (7, 1, 1)),
        ((0, 3, 4),),
        ((3, 0, 4), (3, 4, 0)),
        ((5, 0, 0), (2, 1, 1)),
    ],
    ids=str,
)
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_output_equals_attention_with_the_dense_mask(segments, kv_heads):
    generator = torch.Generator().manual_seed(0)
    total = sum(map(sum, segments))
    query = torch.randn(1, 4, total, 8, generator=generator)
    key, value = (torch.randn(1, kv_heads, total, 8, generator=generator) for _ in range(2))
    out, weights = packed_attention(nn.Module(), query, key, value, None, pack=PackSegments(segments), scaling=0.3)
    assert weights is None
    assert out.shape == (1, total, 4, 8)
    torch.testing.assert_close(out, naive(query, key, value, allowed(segments), 0.3), rtol=1e-5, atol=1e-6)


def test_rejected_mask_by_hand():
    """Lower right: all three queries see the two prefix keys; the first query sees one rejected key, its own."""
    mask = PackSegments(((2, 1, 3),)).rejected_mask(2, 3, torch.device("cpu"))
    assert mask.int().tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]


def test_mask_is_computed_once_for_each_pack():
    pack = PackSegments(((2, 1, 3),))
    device = torch.device("cpu")
    assert pack.rejected_mask(2, 3, device) is pack.rejected_mask(2, 3, device)
    assert PackSegments(pack.segments).rejected_mask(2, 3, device) is not pack.rejected_mask(2, 3, device)


def test_lengths_are_in_the_order_of_the_pack():
    assert PackSegments(((2, 1, 3), (4, 0, 5))).lengths(torch.device("cpu")).tolist() == [2, 1, 3, 4, 0, 5]


def attend(backend: str, dtype=torch.float32, dropout: float = 0.0) -> torch.Tensor:
    query, key, value = (torch.ones(1, 2, 9, 8, dtype=dtype) for _ in range(3))
    pack = PackSegments(((4, 3, 2),), backend)
    return packed_attention(nn.Module(), query, key, value, None, pack=pack, dropout=dropout)[0]


@pytest.mark.parametrize("backend", BACKENDS)
def test_pack_selects_the_backend(backend, monkeypatch):
    mark = torch.zeros(1)
    monkeypatch.setattr(module, "BACKENDS", {**BACKENDS, backend: lambda *_: mark})
    assert attend(backend) is mark


@pytest.mark.parametrize("backend", BACKENDS)
def test_dropout_is_applied_with_every_backend(backend):
    """Without dropout attention over ones gives only ones. With dropout outputs differ."""
    torch.manual_seed(0)
    assert len(attend(backend, dropout=0.5).unique()) > 1


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"pack": None}, "do not pass the pack on"),
        ({"attention_mask": torch.zeros(1, 1, 9, 9)}, "make an attention mask of their own"),
        ({"is_causal": False}, "not causal"),
        ({"sliding_window": 6}, "sliding window of 6 tokens"),
        ({"s_aux": torch.zeros(2)}, "takes 's_aux'"),
        ({"softcap": 50.0}, "takes 'softcap'"),
        ({"position_bias": torch.zeros(1, 2, 9, 9)}, "takes 'position_bias'"),
        ({"something_new": 1}, "takes 'something_new'"),
        ({"key": torch.ones(1, 2, 8, 8)}, "keys of other tokens"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_whatever_else_a_layer_asks_for_is_refused(options, reason):
    """Rows of 4 + 3 and 4 + 2 tokens: a window of 7 hides nothing, one of 6 does."""
    given = {"pack": PackSegments(((4, 3, 2),)), "attention_mask": None, "key": torch.ones(1, 2, 9, 8), **options}
    query, key = torch.ones(1, 2, 9, 8), given.pop("key")
    with pytest.raises(PackError, match=reason):
        packed_attention(nn.Module(), query, key, torch.ones_like(key), **given)


def test_a_layer_that_says_it_is_not_causal_is_refused():
    """BERT's layers say so in an attribute of the module."""
    layer, ones = nn.Module(), torch.ones(1, 2, 9, 8)
    layer.is_causal = False
    with pytest.raises(PackError, match="not causal"):
        packed_attention(layer, ones, ones, ones, None, pack=PackSegments(((4, 3, 2),)))
    packed_attention(layer, ones, ones, ones, None, pack=PackSegments(((4, 3, 2),)), is_causal=True)


def test_arguments_without_effect_are_taken():
    ones = torch.ones(1, 2, 9, 8)
    options = {"sliding_window": 7, "s_aux": None, "output_attentions": False, "position_ids": torch.arange(9)}
    out, _ = packed_attention(nn.Module(), ones, ones, ones, None, pack=PackSegments(((4, 3, 2),)), **options)
    assert torch.equal(out, torch.ones(1, 9, 2, 8))


def test_output_can_be_viewed():
    """Some models call `view` on it."""
    assert all(attend(backend).is_contiguous() for backend in (NATIVE, SDPA))


def test_longest_row_counts_the_prefix_once_for_each_half():
    assert PackSegments(((4, 3, 2), (1, 0, 9))).longest_row == 10


def test_native_uses_the_kernel_of_the_table_and_sdpa_does_not(monkeypatch):
    called = []

    def by_kernel(query, *_):
        called.append("kernel")
        return query.transpose(1, 2)

    def by_torch(*tensors, **options):
        called.append("torch")
        return torch_ops.packed_attention(*tensors, **options)

    op = ops.Op(torch=by_torch, cpu=by_kernel)
    monkeypatch.setattr(ops, "TABLE", {**ops.TABLE, "packed_attention": op})
    monkeypatch.setattr(ops, "kernels_take", lambda *_: True)
    attend(SDPA, torch.bfloat16)
    assert called == []
    attend(NATIVE, torch.bfloat16)
    assert called == ["kernel"]
    monkeypatch.setattr(ops, "kernels_take", lambda *_: False)
    attend(NATIVE)
    assert called == ["kernel", "torch"]
