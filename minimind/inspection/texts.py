"""A sample of pairs as texts, decoded from the tokens that the run trains on.

PairTable of each source, tokenizer -> spread -> read_pair -> PairTexts: prompt and answers, with what counts
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from minimind.data.prompts import answer_start, first_counted
from minimind.data.table import PairTable


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """Consecutive tokens of a row that all count, or none of them, as one text."""

    text: str
    counts: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairTexts:
    """One pair as the run sees it: rendered by the template, cut to the length limit.

    Attributes:
        place: where it is from: "pairs.jsonl, line 7".
        prompt: up to the answers that differ; both rows have it.
        chosen, rejected: from there on.
        tokens: of chosen and of rejected.
    """

    place: str
    prompt: tuple[Run, ...]
    chosen: tuple[Run, ...]
    rejected: tuple[Run, ...]
    tokens: tuple[int, int]


def spread(tables: Sequence[PairTable], most: int) -> Iterator[tuple[PairTable, int]]:
    """Up to `most` of the pairs that are trained on, in order and at equal distances: table and index in it."""
    starts = np.cumsum([0, *map(len, tables)])
    # None of no pairs.
    for position in np.unique(np.linspace(0, max(0, starts[-1] - 1), min(most, int(starts[-1]))).astype(int)):
        part = int(np.searchsorted(starts, position, side="right")) - 1
        yield tables[part], int(position - starts[part])


def read_pair(table: PairTable, index: int, tokenizer: PreTrainedTokenizerBase) -> PairTexts:
    """The texts of a selected pair."""
    pair = table[index]
    start = answer_start(pair)
    return PairTexts(
        place=table.source.place(int(table.lines[table.selected[index]])),
        prompt=_runs(pair.chosen, pair.chosen_mask, 0, start, tokenizer),
        chosen=_runs(pair.chosen, pair.chosen_mask, start, len(pair.chosen), tokenizer),
        rejected=_runs(pair.rejected, pair.rejected_mask, start, len(pair.rejected), tokenizer),
        tokens=(len(pair.chosen), len(pair.rejected)),
    )


def read_answers(table: PairTable, index: int, tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
    """The two answers of a selected pair, without special tokens and without later turns."""
    pair = table[index]
    start = answer_start(pair)
    chosen, rejected = (
        tokenizer.decode(tokens[start:][first_counted(mask[start:])].tolist(), skip_special_tokens=True).strip()
        for tokens, mask in ((pair.chosen, pair.chosen_mask), (pair.rejected, pair.rejected_mask))
    )
    return chosen, rejected


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
