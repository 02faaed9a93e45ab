"""The tokenised pairs of one source as flat arrays.

    table_files.py -> PairTable -> PreferencePair

Letters: n pairs of the source, of which `selected` are trained on.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping

import numpy as np
from numpy.typing import NDArray

from minimind.data.columns import NO_SCORES
from minimind.data.entries import ITEMS, NO_LABEL
from minimind.data.rows import BadRow
from minimind.data.sources import Source
from minimind.data.tokens import ROWS

# Row length at which attention costs about as much as the rest of a transformer block. It is used to compare the costs
# of pairs, so a rough value is enough.
_ATTENTION_TOKENS = 8192


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreferencePair:
    """One tokenised pair.

    Attributes:
        chosen, rejected: token ids, each (length,) int32.
        chosen_mask, rejected_mask: 1 for the assistant's tokens, (length,) uint8.
        prefix: number of leading tokens that both rows share, with equal masks.
        index: of the pair among all tokenised pairs, selected or not.
        scores: of the chosen and of the rejected answer in the data; NaN if not given.
        label: None for a pair, and for a row that stands alone: it is `chosen`, and `rejected` is a single token. Else
            `chosen` is an answer that is desirable or not, and `rejected` is the answer to another prompt behind the
            same prompt, or a single token; see labelled.py.
    """

    chosen: NDArray[np.int32]
    rejected: NDArray[np.int32]
    chosen_mask: NDArray[np.uint8]
    rejected_mask: NDArray[np.uint8]
    prefix: int
    index: int
    scores: tuple[float, float] = NO_SCORES
    label: bool | None = None

    @property
    def row_tokens(self) -> int:
        """Number of tokens of both rows; a rejected row of a single token stands for none."""
        return len(self.chosen) + (len(self.rejected) if len(self.rejected) > 1 else 0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairTable:
    """The pairs of one source as flat arrays.

    Attributes:
        source: where the rows are from.
        key: hash of everything that the arrays depend on.
        tokens, mask: the 2n rows concatenated, chosen before rejected; int32 and uint8.
        offsets: (2n + 1,) int64, start of each row, and the total length.
        full_lengths: (2n,) int64, tokens of each row before anything was cut.
        prefixes: (n,) int64, as in `PreferencePair`.
        prompt_lengths, least_limits: (n,) int64, as in `EncodedPair`.
        identities: (3n,) uint64, hashes of each pair's prompt, chosen and rejected answer; see identity.py.
        lines: (n,) int64, number of each pair's row in the source, from 1; a row may give several pairs.
        scores: (2n,) float32, of chosen and rejected; NaN if not given.
        labels: (n,) uint8, NO_LABEL for a pair; of an answer, which is `chosen` then, 1 if it is desirable, else 0; a
            conversation and a text, which are `chosen` too, have values of their own (entries.py).
        cuts: (n,) uint8, what the length limit did to each pair; see `Chunk.cuts`.
        max_length: the largest number of tokens of a row.
        bad: rows that cannot be trained on. Those with `tokenized` are also among the n pairs.
        counts: number of rows or pairs with a property that the user is told of, by its name in tokens.py.
        shapes: number of rows of each shape, by its name in `SHAPES`.
        unused: number of rows of everything that is not used, e.g. of a column.
        selected: indices of the pairs in use, ascending.
    """

    source: Source
    key: str
    tokens: NDArray[np.int32]
    mask: NDArray[np.uint8]
    offsets: NDArray[np.int64]
    full_lengths: NDArray[np.int64]
    prefixes: NDArray[np.int64]
    lines: NDArray[np.int64]
    prompt_lengths: NDArray[np.int64]
    least_limits: NDArray[np.int64]
    identities: NDArray[np.uint64]
    scores: NDArray[np.float32]
    labels: NDArray[np.uint8]
    cuts: NDArray[np.uint8]
    max_length: int
    bad: Collection[BadRow]
    counts: Mapping[str, int]
    shapes: Mapping[str, int]
    unused: Mapping[str, int]
    selected: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.selected)

    def __getitem__(self, index: int) -> PreferencePair:
        row = int(self.selected[index])
        start, middle, end = self.offsets[2 * row : 2 * row + 3]
        return PreferencePair(
            chosen=self.tokens[start:middle],
            rejected=self.tokens[middle:end],
            chosen_mask=self.mask[start:middle],
            rejected_mask=self.mask[middle:end],
            prefix=int(self.prefixes[row]),
            index=row,
            scores=(float(self.scores[2 * row]), float(self.scores[2 * row + 1])),
            label=None if self.labels[row] >= NO_LABEL else bool(self.labels[row]),
        )

    @property
    def costs(self) -> NDArray[np.float64]:
        """Estimated cost of training on each selected pair, (len,) float64, in tokens: linear layers cost in proportion
        to the packed tokens, attention to the square of a row's length."""
        lengths = np.diff(self.offsets).reshape(-1, 2)[self.selected].astype(np.float64)
        return self.packed_tokens + (lengths**2).sum(1) / _ATTENTION_TOKENS

    @property
    def packed_tokens(self) -> NDArray[np.int64]:
        """Number of tokens of each selected pair in a pack, (len,) int64.

        As in `packs.pack`: the shared prefix counts once, and a row's last token is no input.
        """
        inputs = np.diff(self.offsets).reshape(-1, 2)[self.selected] - 1
        return inputs.sum(1) - np.minimum(self.prefixes[self.selected], inputs.min(1))

    @property
    def is_labelled(self) -> bool:
        """Whether the entries are answers with labels, not pairs; a table has only one of the two."""
        return bool(len(self.labels)) and self.labels[0] < NO_LABEL

    @property
    def items(self) -> str:
        """What the entries are, for messages."""
        return "pairs" if self.is_pairs else ITEMS[int(self.labels[0])]

    @property
    def is_pairs(self) -> bool:
        """Whether the entries are pairs; a table without entries counts as such."""
        return not len(self.labels) or self.labels[0] == NO_LABEL

    @property
    def total_rows(self) -> int:
        """Number of rows of the source that are not blank."""
        return self.counts[ROWS]
