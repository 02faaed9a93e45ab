"""What the run costs: steps, tokens, planned memory, and time where a rate is known.

number of steps, Packing, ModelSizes, configuration, Machine -> plan_memory, plan_cost -> Cost
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from minimind.config import JobConfig
from minimind.inspection.packing import Packing
from minimind.plan.choice import Machine, StepLoad, ZeroChoice
from minimind.plan.memory import rank_memory
from minimind.plan.sizes import ModelSizes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Memory:
    """Planned memory of a rank, in bytes, as launch/plan.py computes it.

    Attributes:
        peak: with micro-batches as large as the largest that was counted in these pairs.
        peak_at_limit: with rows that all have --max_seq_len tokens and share no prefix.
        available: memory of a rank's device.
        device: what that is: "main memory" or "GPU".
    """

    peak: int
    peak_at_limit: int
    available: int
    device: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cost:
    """What the run costs.

    Attributes:
        ranks, global_batch, epochs, steps: number of ranks, pairs (or rows) of a global step, epochs, global steps.
        tokens: that are trained on in all steps, packed.
        row_tokens: the same as the logged tokens_per_second counts them: each row in full.
        memory: None if it cannot be planned; `no_memory` says why.
        seconds: duration at the rate that was given; None without one.
    """

    ranks: int
    global_batch: int
    epochs: int
    steps: int
    tokens: int
    row_tokens: int
    memory: Memory | None
    no_memory: str
    seconds: float | None


def plan_memory(
    sizes: ModelSizes,
    config: JobConfig,
    machine: Machine,
    packing: Packing,
    policy: Mapping[str, Any],
    reference: Mapping[str, Any],
    other: ModelSizes | None = None,
) -> Memory:
    """Memory of a rank.

    Args:
        policy, reference: the resolved DeepSpeed configurations.
        other: sizes of a reference that is another model; None: it is the policy's.
    """
    at_limit = StepLoad.of(config)
    load = dataclasses.replace(at_limit, tokens=min(packing.largest, at_limit.tokens))
    choices = ZeroChoice.of(policy), ZeroChoice.of(reference)
    peaks = [rank_memory(sizes, *choices, one, machine, other).peak for one in (load, at_limit)]
    return Memory(
        peak=peaks[0],
        peak_at_limit=peaks[1],
        available=machine.device_memory,
        device="main memory" if machine.on_cpu else "GPU",
    )
