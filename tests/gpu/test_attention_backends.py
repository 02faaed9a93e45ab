"""Attention backends on a real GPU: outputs and gradients against SDPA in float32, the choice, no waits of the host."""

from __future__ import annotations

import pytest
import torch

from minimind.model import flex_attention
from minimind.model.backend_choice import (
    CHECK_PACKS,
    AttentionShape,
    backend_obstacle,
    choose_backend,
    cuda_milliseconds,
    disagreement,
)
from minimind.model.packed_attention import BACKENDS, FLEX, SDPA, VARLEN, PackSegments

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
    pytest.mark.timeout(600),  # the first compile of a kernel for each dtype and size of heads
]

TYPICAL = ((300, 220, 250), (90, 400, 380), (700, 150, 31), (12, 600, 580))


@pytest.fixture(autouse=True)
def no_compiles_yet():
    """Each test starts like a run: torch limits the number of recompiles in a process."""
    torch._dynamo.reset()
    flex_attention.compiled.cache_clear()


def shape(dtype: torch.dtype, heads: tuple[int, int, int] = (8, 2, 64)) -> AttentionShape:
    device = torch.device("cuda", torch.cuda.current_device())
    return AttentionShape(heads=heads[0], kv_heads=heads[1], head_dim=heads[2], dtype=dtype, device=device)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("heads", [(8, 2, 64), (4, 4, 128), (8, 1, 32), (4, 2, 96), (2, 2, 256)], ids=str)
@pytest.mark.parametrize("name", [SDPA, VARLEN, FLEX])
def test_backend_agrees_with_sdpa_in_float32(name, heads, dtype):
    asked = shape(dtype, heads)
    if why := backend_obstacle(name, asked.device, dtype):
        pytest.skip(why)
    assert disagreement(asked, BACKENDS[name], (*CHECK_PACKS, TYPICAL)) is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_chosen_backend_was_measured(dtype):
    choice = choose_backend(shape(dtype), TYPICAL)
    print(*choice.lines, sep="\n")
    assert choice.name in (SDPA, VARLEN, FLEX)
    assert "no backend could be measured" not in choice.lines[0]
    assert f"{choice.name} " in choice.lines[0]


def test_timer_measures_work_on_the_gpu():
    small, large = (torch.randn(size, size, device="cuda") for size in (256, 4096))
    assert cuda_milliseconds(lambda: small @ small) < cuda_milliseconds(lambda: large @ large)


@pytest.mark.parametrize("name", [SDPA, VARLEN, FLEX])
def test_host_does_not_wait_for_the_gpu(name):
    """After the first step has compiled or loaded the kernels, a step enqueues its work without a synchronisation."""
    asked = shape(torch.bfloat16)
    if why := backend_obstacle(name, asked.device, asked.dtype):
        pytest.skip(why)
    tokens = sum(map(sum, TYPICAL))
    leaves = [torch.randn(1, heads, tokens, 64, device="cuda", dtype=torch.bfloat16) for heads in (8, 2, 2)]

    def step() -> None:
        for leaf in leaves:
            leaf.requires_grad_()
        out = BACKENDS[name](leaves[0], leaves[1], leaves[2], PackSegments(TYPICAL, name), 0.125)
        torch.autograd.grad(out.float().square().mean(), leaves)

    step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
