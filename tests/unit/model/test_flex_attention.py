"""FlexAttention over a pack: its block mask against torch's own from the dense definition, its numbers against SDPA's,
and one compile for packs of all lengths."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from torch import nn
from torch._dynamo.backends.debugging import aot_eager
from torch.nn.attention import flex_attention as torch_flex

from minimind.model.flex_attention import BLOCK, attend, block_mask, compiled, obstacle
from minimind.model.packed_attention import BACKENDS, FLEX, PackSegments, packed_attention
from tests.unit.model.packs import SHAPES, assert_as_sdpa, segments, tensors

CPU = torch.device("cpu")


@pytest.fixture(autouse=True, scope="module")
def _uncompiled_and_with_gradients():
    """torch compiles a wrapper of the uncompiled form too, and has no gradients on a CPU because it compiles none for
    it; the uncompiled form itself, an expression of torch's, has them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch_flex, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
        patch.setattr(torch_flex, "_validate_device", lambda *tensors: None)
        yield


def visible(shape) -> torch.Tensor:
    """(T, T) from the definition: same pair, not later, and rejected never sees chosen's own; pads see pads."""
    tokens = sum(map(sum, shape))
    padded = (*shape, (-tokens % BLOCK, 0, 0))
    who = torch.tensor(
        [(pair, part) for pair, parts in enumerate(padded) for part in range(3) for _ in range(parts[part])]
    )
    pair, part = who.unbind(1)
    same = (pair[:, None] == pair) & ~((part[:, None] == 2) & (part == 1))
    return same.tril()


def assert_mask_as_defined(shape) -> None:
    """Exactly the blocks that hold anything are listed, those without a hole as whole, in both directions."""
    mask, dense = block_mask(shape, CPU), visible(shape)
    number = len(dense) // BLOCK
    seen = dense.view(number, BLOCK, number, BLOCK).sum((1, 3))
    parts, wholes = (seen > 0) & (seen < BLOCK**2), seen == BLOCK**2
    for counts, indices, wanted in (
        (mask.kv_num_blocks, mask.kv_indices, parts),
        (mask.full_kv_num_blocks, mask.full_kv_indices, wholes),
        (mask.q_num_blocks, mask.q_indices, parts.T),
        (mask.full_q_num_blocks, mask.full_q_indices, wholes.T),
    ):
        assert counts.dtype == indices.dtype == torch.int32
        for row, count in enumerate(counts[0, 0].tolist()):
            assert indices[0, 0, row, :count].tolist() == wanted[row].nonzero().flatten().tolist()
    places = torch.arange(len(dense))
    assert torch.equal(mask.mask_mod(None, None, places[:, None], places), dense)
    assert mask.shape == (1, 1, len(dense), len(dense))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_block_mask_is_the_definitions(shape):
    assert_mask_as_defined(shape)


@settings(max_examples=100, deadline=None)
@given(shape=segments(400))
def test_the_block_mask_of_any_pack_is_the_definitions(shape):
    assert_mask_as_defined(shape)


def test_a_block_mask_is_torchs_own():
    """As `create_block_mask` makes it, which goes through the (T, T) tensor that this one does without."""
    shape = ((300, 150, 129), (1, 1, 1), (2, 260, 3))
    mine = block_mask(shape, CPU)
    theirs = torch_flex.create_block_mask(mine.mask_mod, None, None, *mine.shape[-2:], device="cpu")
    for name in ("kv_num_blocks", "kv_indices", "full_kv_num_blocks", "full_kv_indices", "q_num_blocks", "q_indices"):
        assert torch.equal(getattr(mine, name), getattr(theirs, name)), name


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_gives_sdpas_numbers(shape, kv_heads):
    assert_as_sdpa(BACKENDS[FLEX], shape, kv_heads=kv_heads)


@settings(max_examples=20, deadline=None)
@given(shape=segments(100))
def test_any_pack_gives_sdpas_numbers(shape):
    assert_as_sdpa(BACKENDS[FLEX], shape)


def test_the_default_scaling_is_taken_as_it_is():
    assert_as_sdpa(BACKENDS[FLEX], SHAPES[2], scaling=16**-0.5)


def test_a_mask_is_made_once_a_pack_and_serves_all_layers(monkeypatch):
    made = []
    monkeypatch.setattr("minimind.model.flex_attention.block_mask", lambda *of: made.append(of) or block_mask(*of))
    layout, (query, key, value, _) = PackSegments(SHAPES[0], FLEX), tensors(SHAPES[0])
    for _layer in range(3):
        packed_attention(nn.Module(), query, key, value, None, pack=layout)
    assert len(made) == 1


def test_it_needs_a_gpu_to_train():
    assert obstacle(torch.device("cuda"), torch.float32) is None
    assert obstacle(CPU, torch.float32) == "torch has gradients of FlexAttention only on a GPU"


class TestCompiled:
    """As on a GPU but for the last step: dynamo guards, autograd traces forward and backward with symbolic lengths, and
    what would be handed to the code generator is run as it is."""

    @pytest.fixture
    def graphs(self, monkeypatch):
        """The graphs that were compiled, `attend` going through the compiler."""
        made = []

        def count(graph, inputs):
            made.append(graph)
            return aot_eager(graph, inputs)

        torch._dynamo.reset()
        monkeypatch.setattr(torch_flex, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", False)
        monkeypatch.setattr("minimind.model.flex_attention.flex_attention", compiled(count))
        yield made
        compiled.cache_clear()
        torch._dynamo.reset()

    def test_one_compile_serves_packs_of_all_lengths(self, graphs):
        """One for training and one for the reference, over more lengths than torch forgives compiles, other scalings,
        and masks that are other functions."""
        lengths = [((70 * n, 40 * n, 30 * n + 1), (n, n, n)) for n in range(2, 13)]
        assert len({sum(map(sum, shape)) // BLOCK for shape in lengths}) > torch._dynamo.config.recompile_limit
        for number, shape in enumerate(lengths):
            assert_as_sdpa(BACKENDS[FLEX], shape, scaling=0.1 + number / 100)
            with torch.no_grad():
                query, key, value, _ = tensors(shape)
                attend(query, key, value, block_mask(shape, CPU), 0.25)
        assert len(graphs) == 2

    def test_it_is_compiled_within_blocks_that_are_compiled_themselves(self, graphs):
        """`packed_attention` is left out of a block's own compile; the call inside it is not."""

        class Block(nn.Module):
            def forward(self, query, key, value, pack):
                out, _ = packed_attention(self, query * 2, key, value, None, pack=pack)
                return out + 1

        block = Block()
        block.compile(dynamic=True, backend="eager")
        for shape in (SHAPES[7], SHAPES[9]):
            query, key, value, _ = tensors(shape)
            got = block(query, key, value, PackSegments(shape, FLEX))
            wanted = BACKENDS["sdpa"](query * 2, key, value, PackSegments(shape), 0.25) + 1
            torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)
        assert len(graphs) == 1
