"""Flags for the DPO loss."""

from __future__ import annotations

import dataclasses

from minimind.config.fields import flag


@dataclasses.dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """Parameters of the DPO loss."""

    loss: str = flag("sigmoid", "preference loss; sigmoid: DPO")
    beta: float = flag(0.1, "beta of the DPO loss; a larger value keeps the policy closer to the reference", above=0)
    average_log_prob: bool = flag(
        True, "1: mean log-prob of a row's tokens, as in MiniMind; 0: their sum, as in the DPO paper"
    )
