"""Volumes of a step, by DeepSpeed's communication logger, equal those of the theory and of the plan.

P parameters, N ranks, each sending (N - 1) / N of a volume: ZeRO-2 reduces gradients to their owners and gathers new
parameters, 2 P; ZeRO-3 gathers parameters twice and scatters gradients, 3 P; the reference is gathered once, P.
"""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
import torch

from minimind.model.quantized_layers import quantization_obstacle
from tests.distributed.launching import launch
from tests.distributed.test_plan import measured

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(600)]

# Handled like a model that is large beside what ZeRO-3 keeps whole (1e5, 1e9 and 5e7 elements in ds_configs). SHARDED:
# no tensor is too small to be sharded. LARGE: nor are any kept between forward and backward.
SHARDED = {"stage3_param_persistence_threshold": 1000}
LARGE = {
    **SHARDED,
    "stage3_max_reuse_distance": 0,
    "stage3_max_live_parameters": 0,
    "stage3_prefetch_bucket_size": 0,
}
# Ranks, file, micro-batches of a step, overrides -> volume in parameters, the reference's one included.
CASES: dict[tuple[int, str], tuple[str, int, dict[str, int], float]] = {
    (2, "zero2"): ("zero2", 1, SHARDED, 2 + 1),
    (2, "zero3"): ("zero3", 1, LARGE, 3 + 1),
    (4, "zero2"): ("zero2", 1, SHARDED, 2 + 1),
    (4, "zero3"): ("zero3", 1, LARGE, 3 + 1),
    # Kept for backward instead of gathered again: one gather less.
    (2, "zero3, a small model"): ("zero3", 1, SHARDED, 2 + 1),
    # Stage 1 reduces once a global step; stages 2 and 3 after each micro-batch, and stage 3 gathers for each.
    (2, "zero1, 2 micro-batches"): ("zero1", 2, SHARDED, 2 + 1),
    (2, "zero2, 2 micro-batches"): ("zero2", 2, SHARDED, 3 + 1),
    (2, "zero3, 2 micro-batches"): ("zero3", 2, LARGE, 6 + 1),
}
# Adapters of rank 16 on two ranks: their gradients alone are sent, and ZeRO-3 gathers the base twice for each of two
# micro-batches and once for the reference.
ADAPTED = {"lora zero2": ("zero2", False), "lora zero3": ("zero3", False)}
if not quantization_obstacle(torch.device("cpu"), torch.bfloat16):
    ADAPTED["nf4 zero3"] = ("zero3", True)


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """Makes, for a number of ranks, each rank's measured and planned volumes in parameters by name: one launch."""

    @functools.cache
    def on(ranks: int) -> dict[str, list[tuple[float, float]]]:
        cases = [
            {"name": name, "file": file, "dtype": "bfloat16", "micro_batches": batches, "zero": zero, "asks": "sent"}
            for (on, name), (file, batches, zero, _) in CASES.items()
            if on == ranks
        ]
        if ranks == 2:
            shared = {"dtype": "bfloat16", "micro_batches": 2, "zero": SHARDED, "asks": "sent", "rank": 16}
            cases += [{**shared, "name": k, "file": file, "quantize": q} for k, (file, q) in ADAPTED.items()]
        found: dict[str, list[tuple[float, float]]] = {}
        for answer in measured(tmp_path_factory.mktemp("communication"), ranks, cases):
            unit = 2 * answer["parameters"] * (ranks - 1) / ranks
            volumes = (answer["sent"] / unit, answer["plan_sent"] / unit)
            found.setdefault(answer["case"]["name"], []).append(volumes)
        return found

    return on


@pytest.mark.parametrize(
    ("ranks", "name"),
    [
        pytest.param(*case, marks=[pytest.mark.long] if case[0] > 2 else [], id=f"{case[1]}, {case[0]} ranks")
        for case in CASES
    ],
)
def test_step_sends_the_volume_of_the_theory_and_of_the_plan(ranks, name, answers):
    found = answers(ranks)[name]
    assert len(found) == ranks
    for sent, planned in found:
        assert sent == pytest.approx(CASES[ranks, name][-1], rel=0.05)
        assert planned == pytest.approx(sent, rel=0.05)


@pytest.mark.parametrize("name", ADAPTED)
def test_step_of_adapters_sends_the_volume_of_the_plan(name, answers):
    for sent, planned in answers(2)[name]:
        assert planned == pytest.approx(sent, rel=0.01)
        # In 4 bits, 0.28 of the linear layers' volume; in ZeRO-2 2 x adapters.
        assert sent < {"lora zero2": 0.5, "lora zero3": 5.6, "nf4 zero3": 2.9}[name]


@pytest.mark.parametrize("ranks", [2, pytest.param(3, marks=pytest.mark.long)])
def test_collectives_through_shared_memory_equal_those_of_torch(ranks):
    done = launch("tests/distributed/workers/collectives.py", ranks=ranks).succeeded()
    # Three dtypes, two sizes that are large enough, four collectives each.
    carried = 24 if "avx512bw" in Path("/proc/cpuinfo").read_text() else 0
    for rank in range(ranks):
        assert f"rank {rank}: {carried} collectives through memory" in done.output
