"""A sample of items as texts, decoded from the tokens that the run trains on.

PairTable of each source, tokenizer -> spread -> read_item -> ItemTexts: prompt and answers, or a row, with what counts
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from minimind.data.prompts import answer_start, first_counted, split_answer
from minimind.data.table import PairTable
from minimind.inspection.items import ItemKind
from minimind.inspection.pairs import begins


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """Consecutive tokens of a row that all count, or none of them, as one text."""

    text: str
    counts: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class ItemTexts:
    """One item as the run sees it: rendered by the template, cut to the length limit.

    Attributes:
        place: where it is from: "pairs.jsonl, line 7".
        parts: of a pair `prompt`, up to the answers that differ, which both rows have, and `chosen` and `rejected`,
            from there on; else the row, as `conversation` or `text`.
        tokens: of each row, by its name.
    """

    place: str
    parts: Mapping[str, tuple[Run, ...]]
    tokens: Mapping[str, int]


def spread(tables: Sequence[PairTable], most: int) -> Iterator[tuple[PairTable, int]]:
    """Up to `most` of the pairs that are trained on, in order and at equal distances: table and index in it."""
    starts = np.cumsum([0, *map(len, tables)])
    # None of no pairs.
    for position in np.unique(np.linspace(0, max(0, starts[-1] - 1), min(most, int(starts[-1]))).astype(int)):
        part = int(np.searchsorted(starts, position, side="right")) - 1
        yield tables[part], int(position - starts[part])


def read_item(table: PairTable, index: int, tokenizer: PreTrainedTokenizerBase, kind: ItemKind) -> ItemTexts:
    """The texts of a selected item."""
    pair, place = table[index], _place(table, int(table.selected[index]))
    if not kind.has_two:
        # The first token of a row is predicted from nothing, so it never counts.
        mask = np.concatenate([np.zeros(1, np.uint8), pair.chosen_mask[1:]])
        runs = _runs(pair.chosen, mask, 0, len(pair.chosen), tokenizer)
        return ItemTexts(place=place, parts={kind.item: runs}, tokens={kind.item: len(pair.chosen)})
    start = answer_start(pair)
    return ItemTexts(
        place=place,
        parts={
            "prompt": _runs(pair.chosen, pair.chosen_mask, 0, start, tokenizer),
            "chosen": _runs(pair.chosen, pair.chosen_mask, start, len(pair.chosen), tokenizer),
            "rejected": _runs(pair.rejected, pair.rejected_mask, start, len(pair.rejected), tokenizer),
        },
        tokens={"chosen": len(pair.chosen), "rejected": len(pair.rejected)},
    )


def read_answers(table: PairTable, index: int, tokenizer: PreTrainedTokenizerBase, kind: ItemKind) -> tuple[str, ...]:
    """The two answers of a selected pair, the last answer of a conversation, or a text, without special tokens; of a
    pair without later turns."""

    def decode(tokens: NDArray[np.int32]) -> str:
        return tokenizer.decode(tokens.tolist(), skip_special_tokens=True).strip()

    pair = table[index]
    if not kind.has_two:
        return (decode(split_answer(pair)[1] if kind.replies else pair.chosen),)
    start = answer_start(pair)
    return tuple(
        decode(tokens[start:][first_counted(mask[start:])])
        for tokens, mask in ((pair.chosen, pair.chosen_mask), (pair.rejected, pair.rejected_mask))
    )


def _place(table: PairTable, entry: int) -> str:
    """Where an entry is from; of a text that makes several rows also which of them it is."""
    place = table.source.place(int(table.lines[entry]))
    first = begins(table)[entry : entry + 2]
    return place if first.all() else f"{place}, row {int(table.identities[3 * entry + 2]) + 1} of it"


def _runs(
    tokens: NDArray[np.int32], mask: NDArray[np.uint8], start: int, end: int, tokenizer: PreTrainedTokenizerBase
) -> tuple[Run, ...]:
    """The tokens of a row from `start` to `end` as texts, split where the mask changes."""

    def decode(begin: int, end: int) -> str:
        return tokenizer.decode(tokens[begin:end].tolist(), clean_up_tokenization_spaces=False)

    changes = np.flatnonzero(np.diff(mask[start:end])) + start + 1
    runs = []
    for begin, stop in itertools.pairwise([start, *changes.tolist(), end] if end > start else []):
        # Some tokenizers drop the space of a first token, so a run is read as what it adds to the row.
        before, text = decode(0, begin), decode(0, stop)
        added = text[len(before) :] if text.startswith(before) else decode(begin, stop)
        runs.append(Run(text=added, counts=bool(mask[begin])))
    return tuple(runs)
