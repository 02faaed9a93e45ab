"""What a user says about the shape of rows: the flags that change which pairs a row gives.

flags -> ShapeOptions -> parse_rows, and the key of the tokenised data
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from minimind.config.data import DataConfig
from minimind.data.shapes.dataset_info import DatasetInfo, dataset_info
from minimind.data.shapes.turns import TurnNames

# --data_format: each row is recognised by its columns.
AUTO = "auto"
# Values of --pairing.
BEST_WORST, ALL, ADJACENT = "best_worst", "all", "adjacent"


class Items(enum.Enum):
    """What rows become; which, depends on the job and its loss."""

    PAIRS = "pairs"
    ANSWERS = "answers with labels"
    MISMATCHED = "answers with labels, each with the answer to another prompt beside it"
    CONVERSATIONS = "conversations"
    TEXTS = "texts"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShapeOptions:
    """How rows are read.

    Attributes:
        data_format: AUTO, or the name in `SHAPES` of the only shape that is tried.
        pairing: which of several answers make pairs; see `answers.pairs_of`.
        score_gap: the least difference between the scores of such a pair.
        dataset_info: the entry of the data files in LLaMA-Factory's `dataset_info.json`; None without one.
        items: what rows become.
    """

    data_format: str = AUTO
    pairing: str = BEST_WORST
    score_gap: float = 0.0
    dataset_info: DatasetInfo | None = None
    items: Items = Items.PAIRS

    @property
    def names(self) -> TurnNames:
        """How turns are written."""
        return self.dataset_info.names if self.dataset_info else TurnNames()

    def key(self) -> dict[str, Any]:
        """All options as JSON values, for the hash of the tokenised data."""
        entry = self.dataset_info.key() if self.dataset_info else None
        return {
            "data_format": self.data_format,
            "pairing": self.pairing,
            "score_gap": self.score_gap,
            "dataset_info": entry,
            "items": self.items.value,
        }


DEFAULT_SHAPES = ShapeOptions()


def options_of_files(config: DataConfig, files: Sequence[Path]) -> ShapeOptions:
    """How the rows of the files of one source are read under these flags.

    Raises:
        DataError: `dataset_info.json` cannot be used.
    """
    return ShapeOptions(
        data_format=config.data_format,
        pairing=config.pairing,
        score_gap=config.score_gap,
        dataset_info=dataset_info(files, config),
    )
