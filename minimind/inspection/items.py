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
class LengthChart:
    """Lengths that are drawn together.

    Attributes:
        title: heading of the chart.
        names: name of each length in tables and in report.json -> name of the attribute of `PairArrays`.
        labels: how tables call them.
    """

    title: str
    names: Mapping[str, str]
    labels: tuple[str, ...]

    def lengths(self, pairs: PairArrays) -> dict[str, NDArray[np.signedinteger[Any]]]:
        """The lengths of items by their names."""
        return {name: getattr(pairs, attribute) for name, attribute in self.names.items()}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ItemKind:
    """Words for the items of a job.

    Attributes:
        title: of the page.
        item, items: one of them, and several.
        batch_of: what a global batch is made of.
        prompts: what is not in the training and in the held-out data at once.
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
    prompts: str
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
    def has_prompts(self) -> bool:
        """Whether an item begins with something that others may begin with too."""
        return self.prompts != self.items

    @property
    def labels(self) -> Mapping[str, str]:
        """Name of each length -> how tables call it."""
        return {name: label for one in self.charts for name, label in zip(one.names, one.labels, strict=True)}


# By `JobConfig.items`.
ITEMS: Mapping[str, ItemKind] = {
    one.items: one
    for one in (
        ItemKind(
            title="Preference data",
            item="pair",
            items="pairs",
            batch_of="pairs",
            prompts="prompts",
            halves=("chosen", "rejected"),
            keeps="no difference that counts",
            charts=(
                LengthChart(title="Prompts", names={"prompt": "prompts"}, labels=("prompt",)),
                LengthChart(
                    title="Answers",
                    names={"chosen": "chosen", "rejected": "rejected"},
                    labels=("chosen answer", "rejected answer"),
                ),
            ),
        ),
        ItemKind(
            title="Conversations",
            item="conversation",
            items="conversations",
            batch_of="conversations",
            prompts="prompts",
            halves=("answer",),
            sampled=" Read is the last answer of each.",
            keeps="no token that counts",
            charts=(
                LengthChart(title="Conversations", names={"whole": "longest"}, labels=("conversation",)),
                LengthChart(title="Tokens that count", names={"counted": "counted"}, labels=("tokens that count",)),
            ),
        ),
        ItemKind(
            title="Texts",
            item="text",
            items="texts",
            # A text that is split makes several.
            batch_of="rows",
            prompts="texts",
            halves=("text",),
            keeps="no token",
            charts=(LengthChart(title="Texts", names={"whole": "longest"}, labels=("text",)),),
            answers="texts",
            sampled=" Of a text that makes several rows the first is read.",
            rendered="Tokenised between a start and an end token",
            replies=False,
        ),
    )
}
