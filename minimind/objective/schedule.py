"""MiniMind's learning-rate schedule."""

from __future__ import annotations

import math


def learning_rate_factor(step: int, total_steps: int, warmup_steps: int = 0) -> float:
    """What the learning rate of a global step is multiplied with: a cosine from 1 down to a tenth.

    Step s (from 1) of S has `0.1 + 0.45 * (1 + cos(pi * s / S))`, as in MiniMind. With `warmup_steps` W the first W
    steps are also scaled by s / W.
    """
    factor = 0.1 + 0.45 * (1 + math.cos(math.pi * step / total_steps))
    return factor * min(1.0, step / warmup_steps) if warmup_steps else factor
