"""The report before a run: everything that was found out about the data, for the console, the page and report.json.

statistics of this package -> Report -> console.py, page.py, to_json
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping

from minimind.inspection.answers import AnswerReport
from minimind.inspection.cost import Cost
from minimind.inspection.equal_pairs import EqualPairs
from minimind.inspection.items import ITEMS, ItemKind
from minimind.inspection.lengths import Distribution, LengthBias, LimitEffect
from minimind.inspection.packing import Packing
from minimind.inspection.rows import SourceReport
from minimind.inspection.scores import ScoreReport
from minimind.inspection.texts import ItemTexts

# Kinds of findings: the run would stop; worth a look before training; good to know.
STOPS, WARNING, NOTE = "stops", "warning", "note"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that a person should know before the run, and its kind."""

    kind: str
    text: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """What was found out about the data of a run. Shares are of 1, lengths are in tokens, memory is in bytes.

    Attributes:
        items: what is called a pair here: "pairs", "conversations", "texts".
        sources, eval_sources: rows of each source of training and of held-out pairs.
        pairs, eval_pairs: pairs that are trained on, and held-out pairs; of texts the rows that they make.
        max_seq_len: of the run; `enough_limit` keeps 99 % of the pairs whole, `whole_limit` all.
        on_long_row: of the run.
        lengths: by name, see `ItemKind.charts`.
        limits: what each --max_seq_len would do.
        bias: None if there are no two answers.
        scores: None if no pair has any.
        examples: pairs as the run sees them.
        findings: the most important first.
        command: trains on these pairs.
    """

    items: str
    sources: tuple[SourceReport, ...]
    eval_sources: tuple[SourceReport, ...]
    pairs: int
    eval_pairs: int
    max_seq_len: int
    on_long_row: str
    enough_limit: int
    whole_limit: int
    lengths: Mapping[str, Distribution]
    limits: tuple[LimitEffect, ...]
    bias: LengthBias | None
    scores: ScoreReport | None
    equal: EqualPairs
    answers: AnswerReport
    packing: Packing
    cost: Cost
    examples: tuple[ItemTexts, ...]
    findings: tuple[Finding, ...]
    command: str

    @property
    def kind(self) -> ItemKind:
        """How the items are called, and what is described of them."""
        return ITEMS[self.items]

    @property
    def rows(self) -> int:
        return sum(source.rows for source in self.sources)

    @property
    def refused_rows(self) -> int:
        return sum(source.refused_rows for source in self.sources)


def to_json(report: Report) -> str:
    """The report as JSON: an object with the attributes of `Report`, one key a line at the top."""
    return json.dumps(dataclasses.asdict(report), ensure_ascii=False, indent=1) + "\n"
