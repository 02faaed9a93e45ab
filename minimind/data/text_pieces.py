"""Tokenises a text in pieces, so that what the halves of a pair share is tokenised once.

text -> cut before control tokens -> pieces, the latest ones kept with their tokens -> ids and offsets of the whole text

A piece has the tokens that it has within the whole text: the tokenizers library takes added tokens out first, and
normalises and splits what is between them each for itself. Tokenizers whose added tokens reach beyond their text (white
space beside them, overlapping ones) are given whole texts.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

# Characters of a piece that is worth a call, and of all pieces that are kept.
_LEAST, _KEPT = 64, 2**18


class TextPieces:
    """Tokenises texts.

    Args:
        controls: added tokens before which a text may be cut.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, controls: Sequence[str]) -> None:
        self._tokenizer = tokenizer
        cuts = _cuts(tokenizer, controls)
        self._cut = re.compile("|".join(map(re.escape, cuts))) if cuts else None
        self._known: dict[str, tuple[list[int], NDArray[np.int64]]] = {}
        self._size = 0

    def encode(self, text: str) -> tuple[list[int], NDArray[np.int64]]:
        """Token ids of a text, and (tokens, 2) int64: where each token starts and ends in it."""
        ids: list[int] = []
        offsets: list[NDArray[np.int64]] = []
        start = 0
        for end in self._ends(text):
            piece_ids, piece_offsets = self._encode(text[start:end])
            ids += piece_ids
            offsets.append(piece_offsets + start)
            start = end
        return ids, np.concatenate(offsets)

    def _ends(self, text: str) -> list[int]:
        ends, start = [], 0
        # A tokenizer that takes special tokens for text has none to cut before.
        if self._cut is not None and not getattr(self._tokenizer, "split_special_tokens", False):
            for match in self._cut.finditer(text):
                if match.start() - start >= _LEAST:
                    start = match.start()
                    ends.append(start)
        return [*ends, len(text)]

    def _encode(self, piece: str) -> tuple[list[int], NDArray[np.int64]]:
        found = self._known.get(piece)
        if found is None:
            # The template has written the special tokens already; the tokenizer would add a second <bos>.
            encoded = self._tokenizer(piece, add_special_tokens=False, return_offsets_mapping=True)
            offsets = np.fromiter((place for pair in encoded["offset_mapping"] for place in pair), np.int64)
            found = encoded["input_ids"], offsets.reshape(-1, 2)
            if self._size > _KEPT:
                self._known.clear()
                self._size = 0
            self._known[piece] = found
            self._size += len(piece)
        return found


def _cuts(tokenizer: PreTrainedTokenizerBase, controls: Sequence[str]) -> list[str]:
    """The control tokens that are taken out of any text as they are, whatever stands before them."""
    added = {token.content: token for token in tokenizer.added_tokens_decoder.values()}
    ends = {text[place:] for text in added for place in range(1, len(text))}
    return [
        text
        for text in controls
        if text in added
        and not (added[text].normalized or added[text].lstrip or added[text].rstrip or added[text].single_word)
        and not (text[0].isalnum() or text[0] == "_")
        # Another added token may begin before this one and reach into it.
        and not any(text.startswith(end) or end.startswith(text) for end in ends)
    ]
