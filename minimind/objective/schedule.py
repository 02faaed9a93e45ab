"""MiniMind's learning-rate schedule: a cosine from the full rate to a tenth of it."""

from __future__ import annotations

import math


def learning_rate_factor(step: int, total_steps: int, warmup_steps: int = 0) -> float:
    """Factor of the learning rate at a global step.

    Args:
        step: from 1 to total_steps (S).
        total_steps: global steps of the run.
        warmup_steps: during the first W steps the factor is also multiplied by step / W; 0: no warm-up.

    Returns: `0.1 + 0.45 * (1 + cos(pi * step / S))`, as in MiniMind's trainer: 1 at step 0, 0.1 at step S.
    """
    factor = 0.1 + 0.45 * (1 + math.cos(math.pi * step / total_steps))
    return factor * min(1.0, step / warmup_steps) if warmup_steps else factor
