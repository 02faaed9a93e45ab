"""Rows that are wrong, by reason: a reason that many rows share is said once.

BadRow of each row -> by_reason -> Reason, most frequent first -> described, for messages

Memory does not grow with the rows.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable

from minimind.data.rows import BadRow
from minimind.data.sources import Source

# Different reasons that are told apart, and rows that are named for each.
_REASONS, _NAMED = 1000, 8
# Characters of a reason.
_SHOWN = 400
# What may differ in a reason: numbers, as in "column 17", but not those of names, as in 'field2'; and lists.
_VARYING = re.compile(r"(?<![\w'])\d+(?![\w'])|\[[^\]]*\]")
OTHERS = "other reasons"


@dataclasses.dataclass(kw_only=True)
class Reason:
    """A reason and its rows.

    Attributes:
        text: as it was for the first row; in others numbers and lists in it may differ.
        count: of rows.
        rows: numbers of the first rows.
    """

    text: str
    count: int = 0
    rows: list[int] = dataclasses.field(default_factory=list)

    def first(self, source: Source) -> str:
        """The first of its rows: "lines 3, 7, ..."."""
        return source.row(self.rows[0]) if self.count == 1 else source.listed(self.rows, _NAMED)

    @property
    def more(self) -> str:
        """The number of its rows where not all are named, with a space in front."""
        return f" ({self.count} rows)" if self.count > _NAMED else ""


def by_reason(bad: Iterable[BadRow]) -> list[Reason]:
    """The reasons of rows, most frequent first."""
    found: dict[str, Reason] = {}
    for row in bad:
        key = _VARYING.sub("#", row.reason)
        if key not in found and len(found) >= _REASONS:
            key = OTHERS
        reason = found.setdefault(key, Reason(text=OTHERS if key == OTHERS else shortened(row.reason)))
        reason.count += 1
        # One more than is named, so that it shows that there are more.
        if len(reason.rows) <= _NAMED:
            reason.rows.append(row.line)
    return sorted(found.values(), key=lambda reason: -reason.count)


def described(source: Source, bad: Iterable[BadRow], most: int) -> list[str]:
    """Reasons with their rows, one text each: "lines 3, 7: invalid JSON".

    Args:
        most: reasons that are described; a last text counts the rows of the others.
    """
    reasons = by_reason(bad)
    texts = [f"{one.first(source)}{one.more}: {one.text}" for one in reasons[:most]]
    rest = sum(one.count for one in reasons[most:])
    return [*texts, f"{rest} rows for {OTHERS}"] if rest else texts


def shortened(text: str) -> str:
    """A reason that fits into a line."""
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."
