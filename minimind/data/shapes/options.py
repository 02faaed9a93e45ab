"""What a user says about the shape of rows: the flags that change which pairs a row gives.

flags -> ShapeOptions -> parse_rows, and the key of the tokenised data
"""

from __future__ import annotations

import dataclasses
from typing import Any

# --data_format: each row is recognised by its columns.
AUTO = "auto"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShapeOptions:
    """How rows are read.

    Attributes:
        data_format: AUTO, or the name in `SHAPES` of the only shape that is tried.
    """

    data_format: str = AUTO

    def key(self) -> dict[str, Any]:
        """All options as JSON values, for the hash of the tokenised data."""
        return dataclasses.asdict(self)
