"""Peak memory of the output head's log-probs with a large vocabulary, beyond inputs, weight and gradients.

Measured by the kernel (VmHWM), so that memory of torch and its libraries counts. One process forks a child per case:
no case can reuse memory that another one has freed, and no other test is measured.
"""

from __future__ import annotations

import json

import pytest

from tests.forked import run_fresh

VOCABULARY, TARGETS = 151_936, 256
# MiB. All logits in float32 would be 148, as would be a copy of the weight in float32 at a hidden size of 256.
FULL_LOGITS = 148

SCRIPT = """
import json, os, sys
import torch
from minimind import native
from minimind.native import library
from minimind.objective.log_probs import target_log_probs

vocabulary, count = map(int, sys.argv[1:])

def resident(field):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(field)) / 1024

def plain(hidden, weight, targets):
    return (hidden @ weight.T).float().log_softmax(1).gather(1, targets[:, None])[:, 0]

def measure(function, size):
    hidden = torch.ones(count, size, dtype=torch.bfloat16, requires_grad=True)
    weight = torch.full((vocabulary, size), 0.01, dtype=torch.bfloat16, requires_grad=True)
    targets = torch.arange(count) * (vocabulary // count)
    # The libraries load code and allocate buffers at their first product: not memory of the head.
    small = torch.ones(64, size, dtype=torch.bfloat16, requires_grad=True)
    target_log_probs(small, small, torch.arange(64)).sum().backward()
    before = resident("VmRSS:")
    log_probs = function(hidden, weight, targets)
    forward = resident("VmHWM:") - before
    log_probs.sum().backward()
    gradients = sum(grad.numel() * grad.element_size() for grad in (hidden.grad, weight.grad)) / 2**20
    # Until backward there are no gradients to subtract.
    return max(forward, resident("VmHWM:") - before - gradients), log_probs[0].item()

library.compiled_kernels()  # once, for all children
results = {}
for case in ("auto 16", "auto 256", "torch 16", "plain 16"):
    way, size = case.split()
    reader, writer = os.pipe()
    if os.fork() == 0:
        with native.using("torch" if way == "plain" else way):
            result = measure(plain if way == "plain" else target_log_probs, int(size))
        os.write(writer, json.dumps(result).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as file:
        results[case] = json.load(file)
    os.wait()
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def results() -> dict[str, tuple[float, float]]:
    """Case -> MiB beyond inputs, weight and gradients, and the first log-prob."""
    done = run_fresh(SCRIPT, VOCABULARY, TARGETS)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_log_probs_are_right(results):
    """Every token is equally likely: ln(1 / 151,936)."""
    assert [log_prob for _, log_prob in results.values()] == pytest.approx([-11.931] * 4, abs=2e-3)


# Without bfloat16 instructions torch's own products of the larger size take a minute.
@pytest.mark.parametrize("case", ["auto 16", "auto 256", "torch 16"])
def test_the_head_needs_less_memory_than_all_logits(case, results):
    assert results[case][0] < FULL_LOGITS


def test_a_plain_log_softmax_needs_more(results):
    """The measurement sees full logits."""
    assert results["plain 16"][0] > FULL_LOGITS
