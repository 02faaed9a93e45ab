"""Where the tokens of a byte-level tokenizer are, from how many bytes each of them stands for.

token ids -> bytes of each token -> running sum = places in the text's UTF-8, if the sum is that of the whole text

Such a tokenizer neither adds, drops nor changes a byte, so the places need no offsets of the tokenizers library, which
takes longer to hand them over than to tokenise. Everything that it could do to a text is known (`byte_lengths`), and
that it has done nothing is checked for each text.
"""

from __future__ import annotations

import dataclasses
import json
import unicodedata

import numpy as np
from numpy.typing import NDArray
from tokenizers import models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerBase

# What a token that cannot be in such a text counts, so that the sum is wrong.
_NEVER = 2**40
# Parts of a pipeline that only cut a text.
_CUTTING = frozenset({"ByteLevel", "Split", "Digits"})


def byte_lengths(tokenizer: PreTrainedTokenizerBase) -> NDArray[np.int64] | None:
    """How many bytes of a text each token id stands for, (vocabulary + 1,); None if the tokenizer is no such one."""
    if not getattr(tokenizer, "is_fast", False) or not _keeps_bytes(tokenizer):
        return None
    backend = tokenizer.backend_tokenizer
    vocabulary = backend.get_vocab(with_added_tokens=True)
    added = {number: token.content for number, token in backend.get_added_tokens_decoder().items()}
    alphabet = frozenset(pre_tokenizers.ByteLevel.alphabet())
    # One more, for a token that is added later.
    lengths = np.full(max(vocabulary.values(), default=-1) + 2, _NEVER)
    for text, number in vocabulary.items():
        if number in added:
            lengths[number] = len(added[number].encode())
        elif alphabet.issuperset(text):
            lengths[number] = len(text)
    return lengths


def _keeps_bytes(tokenizer: PreTrainedTokenizerBase) -> bool:
    backend = tokenizer.backend_tokenizer
    if not isinstance(backend.model, models.BPE) or not isinstance(backend.normalizer, normalizers.NFC | None):
        return False
    if any(token.lstrip or token.rstrip for token in backend.get_added_tokens_decoder().values()):
        return False  # these take the white space beside them
    if backend.pre_tokenizer is None:
        return False
    state = json.loads(backend.pre_tokenizer.__getstate__())
    parts = state.get("pretokenizers", [state])
    levels = [part for part in parts if part["type"] == "ByteLevel"]
    cuts_only = all(part["type"] in _CUTTING for part in parts)
    return cuts_only and bool(levels) and not any(part["add_prefix_space"] for part in levels)


def is_normal(text: str) -> bool:
    """Whether normalising does not change a text, as far as tokenizers with `byte_lengths` do it."""
    return text.isascii() or unicodedata.is_normalized("NFC", text)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BytePlaces:
    """Tokens of a text that together are its UTF-8, one after the other, as `TokenizedText` for other tokenizers.

    Attributes:
        ids: token ids.
        ends: (tokens,) int64, where each token ends, in bytes; it starts where the one before it ends.
        text: the text.
    """

    ids: list[int]
    ends: NDArray[np.int64]
    text: str

    def mark(self, mask: NDArray[np.uint8], start: int, text_end: int, end: int) -> None:
        """Set the mask to 1 for what counts of a turn; see `TokenizedText.mark`."""
        if not self.text.isascii():
            start, text_end, end = (len(self.text[:place].encode()) for place in (start, text_end, end))
        # Numbers of tokens that end at or before `end`, and that start before `start`, before `text_end`.
        upto, before, begun = (int(self.ends.searchsorted(end, "right")), self._started(start), self._started(text_end))
        if text_end > start:
            # The first token that ends behind the start may begin before it.
            mask[int(self.ends.searchsorted(start, "right")) : max(upto, begun)] = 1
        else:
            mask[before:upto] = 1

    def _started(self, place: int) -> int:
        """Number of tokens that start before a place."""
        return min(len(self.ids), int(self.ends.searchsorted(place, "left")) + 1) if place > 0 else 0
