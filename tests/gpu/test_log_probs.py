"""Log-probs of the head on a real GPU: against a plain log-softmax, without waits of the host."""

from __future__ import annotations

import pytest
import torch

from minimind.objective import log_probs

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
]


def test_log_probs_over_several_blocks_equal_one_softmax_without_a_wait(monkeypatch):
    monkeypatch.setattr(log_probs, "block_bytes", lambda on_cpu: 2**16)
    hidden, weight = (torch.randn(n, 64, device="cuda", dtype=torch.bfloat16) for n in (300, 1000))
    targets = torch.randint(0, 1000, (300,), device="cuda")
    leaves = hidden.requires_grad_(), weight.requires_grad_()
    assert len(log_probs._blocks(targets, weight, torch.float32)) > 3

    def grads() -> tuple[torch.Tensor, ...]:
        made = log_probs.target_log_probs(*leaves, targets)
        return (made.detach(), *torch.autograd.grad(made.sum(), leaves))

    grads()
    torch.cuda.set_sync_debug_mode("error")
    try:
        ours = grads()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    plain = (leaves[0] @ leaves[1].T).float().log_softmax(1).gather(1, targets[:, None])[:, 0]
    exact = (plain.detach(), *torch.autograd.grad(plain.sum(), leaves))
    for one, other in zip(ours, exact, strict=True):
        torch.testing.assert_close(one.float(), other.float(), rtol=2e-2, atol=2e-2)
