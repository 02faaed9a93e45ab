"""The objective of pretraining and of supervised fine-tuning: the cross-entropy of the tokens that count.

log-probs (K,) -> TokenMean.losses -> (K,) losses; --loss_mean says what the mean over a global step is taken of
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from minimind.config.rows import MICRO_BATCH, TOKENS
from minimind.objective.losses.contract import Need


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenMean:
    """-log p of each token, and the way of its mean.

    Attributes:
        mean: TOKENS or MICRO_BATCH.
    """

    name: ClassVar[str] = "cross_entropy"
    needs: ClassVar[frozenset[Need]] = frozenset()
    statistics: ClassVar[Mapping[str, float]] = {}

    mean: str = TOKENS

    @property
    def depends_on_split(self) -> bool:
        """As `AnyObjective.depends_on_split`."""
        return self.mean == MICRO_BATCH

    def losses(self, log_probs: Tensor) -> Tensor:
        """(K,) losses of (K,) log-probs."""
        # Without a mean: the job divides by the tokens of the whole global batch, which no micro-batch knows.
        return -log_probs

    def options(self) -> dict[str, Any]:
        """As `AnyObjective.options`."""
        return {"loss_mean": self.mean}

    def describe(self) -> str:
        """As `AnyObjective.describe`."""
        over = "tokens of a global batch" if self.mean == TOKENS else "micro-batches of their means (--loss_mean)"
        return f"cross-entropy, the mean over the {over}"
