"""The choice of a backend: incorrect, failing and unsupported backends are rejected with a reason, the fastest wins."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import flex_attention as torch_flex

from minimind.errors import ConfigError
from minimind.model import backend_choice, varlen_attention
from minimind.model.backend_choice import (
    CHECK_PACKS,
    AttentionShape,
    BackendChoice,
    backend_obstacle,
    check_backend,
    choose_backend,
    choose_fastest,
    disagreement,
)
from minimind.model.packed_attention import BACKENDS, FLEX, NATIVE, SDPA, VARLEN, sdpa_by_segment
from minimind.model.varlen_attention import torch_kernel
from tests.unit.model.test_varlen_attention import flash

CPU, GPU = torch.device("cpu"), torch.device("cuda")
SEGMENTS = ((6, 3, 2), (40, 100, 90))
TOKENS = sum(map(sum, SEGMENTS))


def shape(dtype=torch.float32, device=CPU, **fields) -> AttentionShape:
    return AttentionShape(**{"heads": 4, "kv_heads": 2, "head_dim": 16, "dtype": dtype, "device": device, **fields})


def clock(*milliseconds):
    """A timer that runs each function once and returns these times one after another."""
    left = iter(milliseconds)

    def measure(run):
        run()
        return next(left)

    return measure


@pytest.fixture
def flex_with_gradients(monkeypatch):
    """Allows gradients of FlexAttention's uncompiled form on a CPU, which torch forbids."""
    monkeypatch.setattr(torch_flex, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
    monkeypatch.setattr(torch_flex, "_validate_device", lambda *tensors: None)


def slightly_off(query, key, value, pack, scaling):
    return sdpa_by_segment(query, key, value, pack, scaling * 1.01)


def wrong_gradients(query, key, value, pack, scaling):
    """The output is correct, but the keys get no gradient."""
    return sdpa_by_segment(query, key.detach() + 0 * key, value, pack, scaling)


def not_a_number(query, key, value, pack, scaling):
    return sdpa_by_segment(query, key, value, pack, scaling) * torch.nan


def fails(query, key, value, pack, scaling):
    raise RuntimeError("CUDA error: no kernel image is available\nfor execution on the device")


def fails_without_gradients(query, key, value, pack, scaling):
    assert query.requires_grad
    return sdpa_by_segment(query, key, value, pack, scaling)


# FlexAttention itself passes the checks once: its uncompiled form takes seconds.
@pytest.mark.parametrize(
    ("flex", "times", "winner"),
    [(BACKENDS[FLEX], (2.0, 1.5), FLEX), (sdpa_by_segment, (1.5, 2.0), SDPA)],
    ids=[FLEX, SDPA],
)
def test_fastest_correct_backend_is_chosen(flex, times, winner, flex_with_gradients):
    candidates = {SDPA: BACKENDS[SDPA], FLEX: flex}
    choice = choose_fastest(shape(), SEGMENTS, candidates, clock(*times))
    assert choice == BackendChoice(
        name=winner,
        lines=(
            f"attention over packs: {winner} (sdpa {times[0]:.2f} ms, flex {times[1]:.2f} ms; forward and "
            f"backward of one layer over {TOKENS} tokens)",
        ),
    )


@pytest.mark.parametrize(
    ("backend", "why"),
    [
        (slightly_off, "its output differs from SDPA's in float32 by "),
        (wrong_gradients, "its key gradient differs from SDPA's in float32 by "),
        (not_a_number, "its output differs from SDPA's in float32 by nan of a token's norm"),
        (fails, "RuntimeError: CUDA error: no kernel image is available"),
        (fails_without_gradients, "AssertionError"),
    ],
)
def test_incorrect_or_failing_backend_is_not_used(backend, why):
    choice = choose_fastest(shape(), SEGMENTS, {"bad": backend, SDPA: sdpa_by_segment}, clock(9.0))
    assert choice.name == SDPA
    assert len(choice.lines) == 2
    assert choice.lines[1].startswith(f"  bad is not used: {why}")


def test_backend_that_fails_while_it_is_timed_is_not_used():
    def out_of_memory(run):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    choice = choose_fastest(shape(), SEGMENTS, {SDPA: sdpa_by_segment}, out_of_memory)
    assert choice.name == SDPA
    assert "(no backend could be measured;" in choice.lines[0]
    assert choice.lines[1] == "  sdpa is not used: OutOfMemoryError: CUDA out of memory."


def test_reasons_of_backends_that_are_no_candidates_are_reported():
    choice = choose_fastest(shape(), SEGMENTS, {SDPA: sdpa_by_segment}, clock(1.0), {VARLEN: "it is not there"})
    assert choice.lines[1:] == ("  varlen is not used: it is not there",)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("heads", [{}, {"heads": 8, "kv_heads": 8, "head_dim": 64}, {"heads": 3, "kv_heads": 1}])
def test_rounding_to_16_bits_is_within_the_tolerance(dtype, heads):
    assert disagreement(shape(dtype, **heads), sdpa_by_segment, (*CHECK_PACKS[:6], SEGMENTS)) is None


def upper_left(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale=None, window_size=None, enable_gqa=False):
    """A kernel with an upper-left aligned causal mask, like PyTorch's SDPA: the first query sees the first key only."""
    return flash(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, scale=scale, diagonal=0)


def one_too_few(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale=None, window_size=None, enable_gqa=False):
    """A kernel in which no query sees its own key, except the first query of each sequence."""
    outputs = []
    queries, keys = cu_seq_q.diff().tolist(), cu_seq_k.diff().tolist()
    for q, k, v in zip(query.split(queries), key.split(keys), value.split(keys), strict=True):
        seen = torch.ones(len(q), len(k), dtype=torch.bool).tril(len(k) - len(q) - 1)
        seen[0, 0] = True
        parts = (x.transpose(0, 1) for x in (q, k, v))
        outputs.append(F.scaled_dot_product_attention(*parts, attn_mask=seen, scale=scale, enable_gqa=True))
    return torch.cat(outputs, dim=1).transpose(0, 1)


@pytest.mark.parametrize("kernel", [upper_left, one_too_few])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kernel_with_a_wrong_mask_is_rejected_in_every_dtype(kernel, dtype, monkeypatch):
    monkeypatch.setattr(varlen_attention, "find_kernel", lambda: torch_kernel(kernel))
    why = disagreement(shape(dtype), BACKENDS[VARLEN], CHECK_PACKS)
    assert why is not None
    assert why.startswith("its output differs")
    # Ten times the tolerance of either dtype, so this does not depend on the random tensors.
    assert float(why.split(" by ")[1].split(" of ")[0]) > 0.3


def test_backend_that_recompiles_for_every_length_is_not_used(flex_with_gradients, monkeypatch):
    """In training each step would wait for a compilation, until torch gives up."""
    monkeypatch.setattr(torch_flex, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", False)
    torch._dynamo.reset()
    static = torch.compile(torch_flex.flex_attention, dynamic=False, fullgraph=True, backend="eager")
    monkeypatch.setattr("minimind.model.flex_attention.flex_attention", static)
    choice = choose_fastest(shape(), SEGMENTS, {FLEX: BACKENDS[FLEX]}, clock(1.0))
    torch._dynamo.reset()
    assert choice.name == SDPA
    assert choice.lines[1].startswith("  flex is not used: FailOnRecompileLimitHit: ")


def test_check_has_more_lengths_than_torch_allows_recompiles():
    blocks = {-(-sum(map(sum, segments)) // 128) for segments in CHECK_PACKS}
    assert len(blocks) > torch._dynamo.config.recompile_limit
    assert any(0 in pair for segments in CHECK_PACKS for pair in segments)


@pytest.mark.parametrize(
    ("name", "device", "dtype", "dropout", "why"),
    [
        (SDPA, CPU, torch.float32, 0.1, None),
        (NATIVE, CPU, torch.bfloat16, 0.0, None),
        (NATIVE, GPU, torch.bfloat16, 0.0, "it supports only bfloat16 on a CPU"),
        (NATIVE, CPU, torch.float32, 0.0, "it supports only bfloat16 on a CPU"),
        (FLEX, GPU, torch.float32, 0.0, None),
        (FLEX, CPU, torch.bfloat16, 0.0, "torch has gradients of FlexAttention only on a GPU"),
        (FLEX, GPU, torch.bfloat16, 0.1, "the model has attention dropout 0.1, which only SDPA supports"),
        (VARLEN, CPU, torch.bfloat16, 0.0, "flash attention needs a GPU"),
        (VARLEN, GPU, torch.float32, 0.0, "flash attention supports only bfloat16 and float16"),
        (VARLEN, GPU, torch.bfloat16, 0.1, "the model has attention dropout 0.1, which only SDPA supports"),
    ],
)
def test_obstacles_known_without_a_run(name, device, dtype, dropout, why):
    assert backend_obstacle(name, device, dtype, dropout) == why
    if why is not None:
        assert check_backend(shape(dtype, device, dropout=dropout), name, SEGMENTS) == why


def test_backend_is_checked_by_running_it(monkeypatch):
    monkeypatch.setattr(backend_choice, "backend_obstacle", lambda *_: None)
    monkeypatch.setattr(backend_choice, "BACKENDS", {FLEX: sdpa_by_segment, VARLEN: fails})
    assert check_backend(shape(), FLEX, SEGMENTS) is None
    expected = "RuntimeError: CUDA error: no kernel image is available for execution on the device"
    assert check_backend(shape(), VARLEN, SEGMENTS) == expected
    monkeypatch.setattr(backend_choice, "BACKENDS", {FLEX: slightly_off})
    assert "its output differs" in check_backend(shape(), FLEX, SEGMENTS)


def test_kernel_that_breaks_the_gpu_ends_the_run_with_advice(monkeypatch):
    """After an illegal access CUDA reports the same error from every call, so no other backend can be tried."""

    def broken(device):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    gpu, error = torch.device("cuda"), RuntimeError("first reported elsewhere")
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    assert backend_choice._failure(FLEX, error, gpu) == "RuntimeError: first reported elsewhere"
    monkeypatch.setattr(torch.cuda, "synchronize", broken)
    with pytest.raises(
        ConfigError, match=r"the check of flex attention left the GPU unusable .*illegal memory.*start again with"
    ):
        backend_choice._failure(FLEX, error, gpu)


def test_values_may_have_fewer_channels_than_keys():
    latent = dataclasses.replace(shape(), value_dim=shape().head_dim // 2)
    assert disagreement(latent, sdpa_by_segment, CHECK_PACKS[:2]) is None


def test_nothing_is_measured_on_a_cpu(monkeypatch):
    monkeypatch.setattr(backend_choice, "cuda_milliseconds", lambda run: pytest.fail("measured"))
    expected = ("attention over packs: the project's CPU kernel",)
    assert choose_backend(shape(torch.bfloat16), SEGMENTS) == BackendChoice(name=NATIVE, lines=expected)
    for dtype in (torch.float32, torch.float16):
        expected = ("attention over packs: torch's SDPA, segment by segment",)
        assert choose_backend(shape(dtype), SEGMENTS) == BackendChoice(name=SDPA, lines=expected)
