"""What the report calls the items of each job, and which statistics they have.

    JobConfig.items -> ITEMS -> ItemKind -> every module that describes items

A table keeps rows that stand alone as pairs with an empty second row, so the statistics are those of pairs; what needs
two answers, or a prompt, is left out where there is none. To add a job's items, write an entry of `ITEMS`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minimind.inspection.pairs import PairArrays


@dataclasses.dataclass(frozen=True, kw_only=True)
class Length:
    """A length of each item, in tokens.

    Attributes:
        name: in charts and in report.json.
        label: in tables.
        attribute: of `PairArrays`.
    """

    name: str
    label: str
    attribute: str

    def of(self, pairs: PairArrays) -> NDArray[np.signedinteger[Any]]:
        """The lengths of all items, (pairs,)."""
        found: NDArray[np.signedinteger[Any]] = getattr(pairs, self.attribute)
        return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class LengthChart:
    """Lengths that are drawn together.

    Attributes:
        title: heading of the chart.
    """

    title: str
    lengths: tuple[Length, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ItemKind:
    """Words for the items of a job.

    Attributes:
        title: of the page.
        item, items: one of them, and several.
        rows: what the files have.
        batch_of: what a global batch is made of.
        prompts: what is not in the training and in the held-out data at once.
        has_prompts: an item begins with something that others may begin with too.
        halves: what is read and shown of an item, one name for each of its rows.
        keeps: what a row must keep when it is cut, or it is lost.
        charts: which lengths are described.
        answers: what is read of a sample.
        sampled: a sentence about what is read, where that is not all.
        rendered: how the tokens come about.
        replies: what is read are answers of an assistant, which may be refusals.
    """

    title: str
    item: str
    items: str
    batch_of: str
    rows: str = "rows"
    prompts: str = "prompts"
    has_prompts: bool = True
    halves: tuple[str, ...]
    keeps: str
    charts: tuple[LengthChart, ...]
    answers: str = "answers"
    sampled: str = ""
    rendered: str = "Rendered by the run's template and tokenizer"
    replies: bool = True

    @property
    def learnt(self) -> str:
        """What a model learns to say: "chosen answers", "answers", "texts"."""
        return f"chosen {self.answers}" if self.has_two else self.answers

    @property
    def has_two(self) -> bool:
        """Whether an item has two answers, which can be compared."""
        return len(self.halves) > 1

    @property
    def lengths(self) -> list[Length]:
        """Those of all charts."""
        return [length for chart in self.charts for length in chart.lengths]


# By `JobConfig.items`.
ITEMS: Mapping[str, ItemKind] = {
    one.items: one
    for one in (
        ItemKind(
            title="Preference data",
            item="pair",
            items="pairs",
            batch_of="pairs",
            halves=("chosen", "rejected"),
            keeps="no difference that counts",
            charts=(
                LengthChart(title="Prompts", lengths=(Length(name="prompt", label="prompt", attribute="prompts"),)),
                LengthChart(
                    title="Answers",
                    lengths=(
                        Length(name="chosen", label="chosen answer", attribute="chosen"),
                        Length(name="rejected", label="rejected answer", attribute="rejected"),
                    ),
                ),
            ),
        ),
        ItemKind(
            title="Conversations",
            item="conversation",
            items="conversations",
            batch_of="conversations",
            halves=("answer",),
            sampled=" Read is the last answer of each.",
            keeps="no token that counts",
            charts=(
                LengthChart(
                    title="Conversations", lengths=(Length(name="whole", label="conversation", attribute="longest"),)
                ),
                LengthChart(
                    title="Tokens that count",
                    lengths=(Length(name="counted", label="tokens that count", attribute="counted"),),
                ),
            ),
        ),
        ItemKind(
            title="Texts",
            item="text",
            items="texts",
            # A text that is split makes several.
            batch_of="rows",
            rows="texts",
            prompts="texts",
            has_prompts=False,
            halves=("text",),
            keeps="no token",
            charts=(LengthChart(title="Texts", lengths=(Length(name="whole", label="text", attribute="longest"),)),),
            answers="texts",
            sampled=" Of a text that makes several rows the first is read.",
            rendered="Tokenised between a start and an end token",
            replies=False,
        ),
    )
}
