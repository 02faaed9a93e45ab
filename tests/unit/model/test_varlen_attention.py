"""One variable-length call over a pack. The kernels need a GPU, so functions written with SDPA take their place: they
do what the documentation of the kernels says, with the signatures of several releases."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from minimind.model import varlen_attention
from minimind.model.packed_attention import BACKENDS, VARLEN
from minimind.model.varlen_attention import VarlenPlan, find_kernel, obstacle, torch_kernel
from tests.unit.model.packs import SHAPES, assert_as_sdpa, segments

CPU = torch.device("cpu")


def flash(query, key, value, query_ends, key_ends, longest_query, longest_key, *, scale, diagonal=None):
    """Lower-right causal attention of each sequence: query (T, heads, D), key and value (S, kv heads, D)."""
    assert query_ends.dtype == key_ends.dtype == torch.int32
    assert isinstance(longest_query, int)
    assert isinstance(longest_key, int)
    queries, keys = query_ends.diff().tolist(), key_ends.diff().tolist()
    assert (max(queries), max(keys)) == (longest_query, longest_key)
    assert min(queries) > 0
    assert (int(query_ends[-1]), int(key_ends[-1])) == (len(query), len(key))
    outputs = []
    for q, k, v in zip(query.split(queries), key.split(keys), value.split(keys), strict=True):
        seen = torch.ones(len(q), len(k), dtype=torch.bool).tril(len(k) - len(q) if diagonal is None else diagonal)
        parts = (x.transpose(0, 1) for x in (q, k, v))
        outputs.append(F.scaled_dot_product_attention(*parts, attn_mask=seen, scale=scale, enable_gqa=True))
    return torch.cat(outputs, dim=1).transpose(0, 1)


def as_in_210(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, is_causal=False, return_aux=None) -> Tensor:
    assert is_causal
    assert query.shape[1] == key.shape[1]
    return flash(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, scale=None)


def as_in_211(
    query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, return_aux=None, scale=None, window_size=(-1, -1)
) -> Tensor:
    assert window_size == (-1, 0)
    assert query.shape[1] == key.shape[1]
    return flash(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, scale=scale)


def as_in_213(
    query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale=None, window_size=(-1, -1), enable_gqa=False
) -> Tensor:
    assert window_size == (-1, 0)
    assert enable_gqa or query.shape[1] == key.shape[1]
    return flash(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, scale=scale)


def as_the_package(
    q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p=0.0, softmax_scale=None, causal=False
) -> Tensor:
    assert causal
    return flash(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, scale=softmax_scale)


RELEASES = (as_in_210, as_in_211, as_in_213)


@pytest.fixture
def kernel(monkeypatch):
    """Returns a function that installs a kernel."""

    def use(one) -> None:
        monkeypatch.setattr(varlen_attention, "find_kernel", lambda: one)

    return use


@pytest.fixture
def afresh():
    """Clears the cached kernel before and after the test."""
    find_kernel.cache_clear()
    yield
    find_kernel.cache_clear()


def test_plan_by_hand():
    """Two pairs. The rejected part of the first sees its prefix and itself; the second has no rejected part."""
    plan = VarlenPlan.of(((2, 1, 2), (1, 2, 0)), CPU)
    assert plan.keys.tolist() == [0, 1, 2, 0, 1, 3, 4, 5, 6, 7]
    assert plan.query_ends.tolist() == [0, 3, 5, 8]
    assert plan.key_ends.tolist() == [0, 3, 7, 10]
    assert (plan.longest_query, plan.longest_key) == (3, 4)


def test_empty_sequences_are_left_out():
    plan = VarlenPlan.of(((0, 0, 3), (2, 0, 0), (0, 0, 0), (0, 1, 2)), CPU)
    assert plan.keys.tolist() == [0, 1, 2, 3, 4, 5, 6, 7]
    assert plan.query_ends.tolist() == plan.key_ends.tolist() == [0, 3, 5, 6, 8]


@pytest.mark.parametrize("function", RELEASES)
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("scaling", [0.25, 0.3])
def test_results_with_every_signature_equal_those_of_sdpa(function, kv_heads, scaling, kernel):
    """torch 2.10 has no argument for the scaling, so a scaling other than the default is applied to the queries."""
    kernel(torch_kernel(function))
    for shape in SHAPES:
        assert_as_sdpa(BACKENDS[VARLEN], shape, scaling, kv_heads=kv_heads)


@settings(max_examples=50, deadline=None)
@given(shape=segments(40))
def test_results_of_any_pack_equal_those_of_sdpa(shape):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(varlen_attention, "find_kernel", lambda: torch_kernel(as_in_213))
        assert_as_sdpa(BACKENDS[VARLEN], shape)


@pytest.mark.parametrize("kv_heads", [4, 2])
def test_function_of_this_torch_accepts_the_arguments(kv_heads, afresh):
    """Forward and backward on fake tensors: this checks arguments and shapes, not values."""
    pytest.importorskip("torch.nn.attention.varlen", reason="torch has varlen_attn from 2.10 on")
    found = find_kernel()
    assert found is not None
    assert found.__qualname__.startswith(torch_kernel.__name__)
    plan = VarlenPlan.of(SHAPES[2], CPU)
    with FakeTensorMode(allow_non_fake_inputs=True):
        query, key, value = (
            torch.empty(1, heads, 30, 16, dtype=torch.bfloat16, requires_grad=True) for heads in (4, kv_heads, kv_heads)
        )
        out = varlen_attention.attend(query, key, value, plan, 0.25)
        grads = torch.autograd.grad(out.sum(), (query, key, value))
    assert (out.shape, out.dtype) == ((1, 30, 4, 16), torch.bfloat16)
    assert [grad.shape for grad in grads] == [query.shape, key.shape, value.shape]


def test_flash_attn_package_is_used_if_torch_has_no_kernel(afresh, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.nn.attention.varlen", None)
    package = ModuleType("flash_attn")
    package.flash_attn_varlen_func = as_the_package
    monkeypatch.setitem(sys.modules, "flash_attn", package)
    for shape in SHAPES:
        assert_as_sdpa(BACKENDS[VARLEN], shape)


def test_obstacles_are_reported(afresh, monkeypatch):
    gpu = torch.device("cuda")
    assert obstacle(CPU, torch.bfloat16) == "flash attention needs a GPU"
    assert obstacle(gpu, torch.float32) == "flash attention supports only bfloat16 and float16"
    for name in ("torch.nn.attention.varlen", "flash_attn"):
        monkeypatch.setitem(sys.modules, name, None)
    why = obstacle(gpu, torch.bfloat16)
    assert why == f"torch {torch.__version__} has no varlen_attn (new in 2.10), and flash_attn is not installed"


def test_no_obstacle_for_16_bits_on_a_gpu(afresh, monkeypatch):
    module = ModuleType("torch.nn.attention.varlen")
    module.varlen_attn = as_in_213
    monkeypatch.setitem(sys.modules, "torch.nn.attention.varlen", module)
    assert obstacle(torch.device("cuda"), torch.float16) is None
