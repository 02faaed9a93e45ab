"""The head's extra memory for a large vocabulary: what a process holds at most beyond inputs, weight and gradients.

Measured in a process of its own, by the kernel: whatever torch and its libraries take counts, no other test does.
"""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

VOCABULARY, TARGETS, LIMIT_MIB = 151_936, 1024, 300

SCRIPT = """
import json, sys
import torch
from minimind.objective.log_probs import target_log_probs

def resident(field):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(field)) / 1024

def plain(hidden, weight, targets):
    return (hidden @ weight.T).float().log_softmax(1).gather(1, targets[:, None])[:, 0]

vocabulary, count, size, way = *map(int, sys.argv[1:4]), sys.argv[4]
hidden = torch.ones(count, size, dtype=torch.bfloat16, requires_grad=True)
weight = torch.full((vocabulary, size), 0.01, dtype=torch.bfloat16, requires_grad=True)
targets = torch.arange(count) * (vocabulary // count)
# What the libraries load and set up at their first product is no memory of the head's.
small = torch.ones(64, size, dtype=torch.bfloat16, requires_grad=True)
target_log_probs(small, small, torch.arange(64)).sum().backward()
before = resident("VmRSS:")
log_probs = (plain if way == "plain" else target_log_probs)(hidden, weight, targets)
# Before there is a gradient there is none to take off.
forward = resident("VmHWM:") - before
log_probs.sum().backward()
grads = sum(grad.numel() * grad.element_size() for grad in (hidden.grad, weight.grad)) / 2**20
extra = max(forward, resident("VmHWM:") - before - grads)
print(json.dumps({"extra": extra, "log_prob": log_probs[0].item()}))
"""


def extra_mib(hidden: int, way: str) -> float:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *map(str, (VOCABULARY, TARGETS, hidden)), way],
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    # Every token is equally likely: ln(1 / 151,936).
    assert result["log_prob"] == pytest.approx(-11.931, abs=2e-3)
    return result["extra"]


@pytest.mark.parametrize("hidden", [64, 1024])
def test_the_head_stays_under_300_mib(hidden):
    assert extra_mib(hidden, "ours") < LIMIT_MIB


def test_a_plain_log_softmax_does_not():
    """The measure sees what it should: float32 logits of all targets alone are 593 MiB."""
    assert extra_mib(64, "plain") > 593
