"""FlexAttention over a pack: its block mask against torch's own, its results against SDPA's, and one compilation for
all lengths."""

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
    """Runs the uncompiled form directly and with gradients.

    torch would compile a wrapper around it, and forbids gradients on a CPU because it has no compiled ones there.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch_flex, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
        patch.setattr(torch_flex, "_validate_device", lambda *tensors: None)
        yield


def visible(shape) -> torch.Tensor:
    """(T, T) mask by definition: same pair, key not later, no chosen keys for rejected queries. Padding is one pair."""
    tokens = sum(map(sum, shape))
    padded = (*shape, (-tokens % BLOCK, 0, 0))
    who = torch.tensor(
        [(pair, part) for pair, parts in enumerate(padded) for part in range(3) for _ in range(parts[part])]
    )
    pair, part = who.unbind(1)
    same = (pair[:, None] == pair) & ~((part[:, None] == 2) & (part == 1))
    return same.tril()


def assert_mask_as_defined(shape) -> None:
    """The lists contain exactly the blocks with a visible key, and the full lists those without a hidden one."""
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
def test_block_mask_equals_the_dense_mask(shape):
    assert_mask_as_defined(shape)


@settings(max_examples=100, deadline=None)
@given(shape=segments(400))
def test_block_mask_of_any_pack_equals_the_dense_mask(shape):
    assert_mask_as_defined(shape)


def test_block_mask_equals_that_of_create_block_mask():
    """torch's `create_block_mask` computes the same mask from a tensor of (T, T)."""
    shape = ((300, 150, 129), (1, 1, 1), (2, 260, 3))
    mine = block_mask(shape, CPU)
    theirs = torch_flex.create_block_mask(mine.mask_mod, None, None, *mine.shape[-2:], device="cpu")
    for name in ("kv_num_blocks", "kv_indices", "full_kv_num_blocks", "full_kv_indices", "q_num_blocks", "q_indices"):
        assert torch.equal(getattr(mine, name), getattr(theirs, name)), name


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_results_equal_those_of_sdpa(shape, kv_heads):
    assert_as_sdpa(BACKENDS[FLEX], shape, kv_heads=kv_heads)


@settings(max_examples=20, deadline=None)
@given(shape=segments(100))
def test_results_of_any_pack_equal_those_of_sdpa(shape):
    assert_as_sdpa(BACKENDS[FLEX], shape)


def test_default_scaling_equals_sdpa():
    assert_as_sdpa(BACKENDS[FLEX], SHAPES[2], scaling=16**-0.5)


def test_mask_is_computed_once_for_all_layers(monkeypatch):
    made = []
    monkeypatch.setattr("minimind.model.flex_attention.block_mask", lambda *of: made.append(of) or block_mask(*of))
    pack, (query, key, value, _) = PackSegments(SHAPES[0], FLEX), tensors(SHAPES[0])
    for _layer in range(3):
        packed_attention(nn.Module(), query, key, value, None, pack=pack)
    assert len(made) == 1


def test_training_needs_a_gpu():
    assert obstacle(torch.device("cuda"), torch.float32) is None
    assert obstacle(CPU, torch.float32) == "torch has gradients of FlexAttention only on a GPU"


class TestCompiled:
    """Compilation as on a GPU, except for code generation: dynamo and autograd trace forward and backward with symbolic
    lengths, and the resulting graphs are run by torch."""

    @pytest.fixture
    def graphs(self, monkeypatch):
        """Compiles `attend` and returns the list of compiled graphs."""
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
        """Two graphs, for training and for the reference, over more lengths than torch allows recompiles, with
        different scalings and mask functions."""
        lengths = [((70 * n, 40 * n, 30 * n + 1), (n, n, n)) for n in range(2, 13)]
        assert len({sum(map(sum, shape)) // BLOCK for shape in lengths}) > torch._dynamo.config.recompile_limit
        for number, shape in enumerate(lengths):
            assert_as_sdpa(BACKENDS[FLEX], shape, scaling=0.1 + number / 100)
            with torch.no_grad():
                query, key, value, _ = tensors(shape)
                attend(query, key, value, block_mask(shape, CPU), 0.25)
        assert len(graphs) == 2

    def test_attention_is_compiled_inside_compiled_blocks(self, graphs):
        """`packed_attention` is not part of the compiled block, but the FlexAttention call in it is compiled."""

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
