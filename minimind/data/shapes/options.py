"""What a user says about the shape of rows: the flags that change which pairs a row gives.

flags -> ShapeOptions -> parse_rows, and the key of the tokenised data
"""

from __future__ import annotations

import dataclasses
from typing import Any

# --data_format: each row is recognised by its columns.
AUTO = "auto"
# Values of --pairing.
BEST_WORST, ALL, ADJACENT = "best_worst", "all", "adjacent"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShapeOptions:
    """How rows are read.

    Attributes:
        data_format: AUTO, or the name in `SHAPES` of the only shape that is tried.
        pairing: which of several answers make pairs; see `answers.pairs_of`.
        score_gap: the least difference between the scores of such a pair.
    """

    data_format: str = AUTO
    pairing: str = BEST_WORST
    score_gap: float = 0.0

    def key(self) -> dict[str, Any]:
        """All options as JSON values, for the hash of the tokenised data."""
        return dataclasses.asdict(self)


DEFAULT_SHAPES = ShapeOptions()
