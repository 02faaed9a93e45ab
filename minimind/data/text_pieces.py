"""Tokenises a text in pieces, so that what the halves of a pair share is tokenised once.

text -> cut before control tokens -> pieces, the latest ones kept with their tokens -> ids and places of the whole text

A piece has the tokens that it has within the whole text: the tokenizers library takes added tokens out first, and
normalises and splits what is between them each for itself. Tokenizers whose added tokens reach beyond their text (white
space beside them, overlapping ones) are given whole texts.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from minimind.data.byte_places import byte_lengths, is_normal

# Characters of a piece that is worth a call, of pieces that are tokenised in one call, and of all that are kept.
_LEAST, _BATCH, _KEPT = 64, 2**17, 2**23
# What a tokenizer does when it is called.
_CALLS = ("__call__", "_encode_plus")


@dataclasses.dataclass(slots=True)
class _Piece:
    """A tokenised piece.

    Attributes:
        ids: token ids.
        ends: (tokens,) int64, where each token ends, in bytes of the piece; None if that is not known.
        offsets: (tokens, 2) int64, the library's characters of each token; None if they were not asked for.
    """

    ids: list[int]
    ends: NDArray[np.int64] | None
    offsets: NDArray[np.int64] | None


class TextPieces:
    """Tokenises texts.

    Args:
        controls: added tokens before which a text may be cut.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, controls: Sequence[str]) -> None:
        self._tokenizer = tokenizer
        cuts = _cuts(tokenizer, controls)
        self._cut = re.compile("|".join(map(re.escape, cuts))) if cuts else None
        self._known: dict[str, _Piece] = {}
        # The pieces of texts that were foreseen.
        self._foreseen: dict[str, list[str]] = {}
        self._size = 0
        self._is_direct = _is_direct(tokenizer)
        self._lengths = byte_lengths(tokenizer) if self._is_direct else None
        self._normalizes = self._lengths is not None and tokenizer.backend_tokenizer.normalizer is not None

    def foresee(self, texts: Iterable[str]) -> None:
        """Tokenise the pieces of texts for `encode_bytes`, many in one call: that is faster than one by one.

        Other pieces are forgotten.

        Raises:
            BaseException: the tokenizer rejects one of the texts.
        """
        if self._lengths is None:
            return
        self._forget()
        self._foreseen = {text: self._cut_up(text) for text in texts}
        batch: list[str] = []
        size = 0
        for piece in dict.fromkeys(itertools.chain.from_iterable(self._foreseen.values())):
            batch.append(piece)
            size += len(piece)
            if size > _BATCH:
                self._encode_batch(batch)
                batch, size = [], 0
        self._encode_batch(batch)

    def _encode_batch(self, texts: list[str]) -> None:
        # The call that works out no offsets.
        found = _ready(self._tokenizer).encode_batch_fast(texts, add_special_tokens=False) if texts else []
        ids = [encoding.ids for encoding in found]
        for text, own, ends in zip(texts, ids, self._ends(ids), strict=True):
            whole = (ends[-1] if own else 0) == len(text.encode())
            self._keep(text, _Piece(ids=own, ends=ends if whole else None, offsets=None))

    def encode(self, text: str) -> tuple[list[int], NDArray[np.int64]]:
        """Token ids of a text, and (tokens, 2) int64: the characters at which each token starts and ends."""
        ids: list[int] = []
        offsets: list[NDArray[np.int64]] = []
        start = 0
        for text_piece in self._cut_up(text):
            piece = self._known.get(text_piece)
            if piece is None or piece.offsets is None:
                piece = self._keep(text_piece, self._with_offsets(text_piece))
            assert piece.offsets is not None
            ids += piece.ids
            offsets.append(piece.offsets + start)
            start += len(text_piece)
        return ids, np.concatenate(offsets)

    def encode_bytes(self, text: str) -> tuple[list[int], NDArray[np.int64]] | None:
        """Token ids of a text, and (tokens,) int64: where each ends in the text's UTF-8.

        Each token starts where the one before it ends. None if the tokenizer's tokens do not tell their places.
        """
        if self._lengths is None or (self._normalizes and not is_normal(text)):
            return None
        ids: list[int] = []
        ends: list[NDArray[np.int64]] = []
        start = 0
        for text_piece in self._foreseen.get(text) or self._cut_up(text):
            piece = self._known.get(text_piece) or self._one(text_piece)
            if piece.ends is None:
                return None
            ids += piece.ids
            ends.append(piece.ends + start)
            start += int(piece.ends[-1]) if piece.ids else 0
        return ids, np.concatenate(ends)

    def _cut_up(self, text: str) -> list[str]:
        pieces, start = [], 0
        # A tokenizer that takes special tokens for text has none to cut before.
        if self._cut is not None and not getattr(self._tokenizer, "split_special_tokens", False):
            for match in self._cut.finditer(text):
                if match.start() - start >= _LEAST:
                    pieces.append(text[start : match.start()])
                    start = match.start()
        return [*pieces, text[start:]]

    def _with_offsets(self, text: str) -> _Piece:
        # The template has written the special tokens already; the tokenizer would add a second <bos>.
        if self._is_direct:
            found = _ready(self._tokenizer).encode(text, add_special_tokens=False)
            ids, places = found.ids, itertools.chain.from_iterable(found.offsets)
        else:
            encoded = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
            ids, places = encoded["input_ids"], itertools.chain.from_iterable(encoded["offset_mapping"])
        return _Piece(ids=ids, ends=None, offsets=np.fromiter(places, np.int64, 2 * len(ids)).reshape(-1, 2))

    def _one(self, text: str) -> _Piece:
        self._encode_batch([text])
        return self._known[text]

    def _ends(self, ids: list[list[int]]) -> Iterator[NDArray[np.int64]]:
        """Where each token ends, in bytes, of each of several texts."""
        assert self._lengths is not None
        # One array of all tokens: making it takes most of the time.
        flat = np.fromiter(itertools.chain.from_iterable(ids), np.int64, sum(map(len, ids)))
        lengths, start = self._lengths.take(flat, mode="clip"), 0
        for own in ids:
            yield lengths[start : start + len(own)].cumsum()
            start += len(own)

    def _forget(self) -> None:
        self._known.clear()
        self._size = 0

    def _keep(self, text: str, piece: _Piece) -> _Piece:
        if self._size > _KEPT:
            self._forget()
        self._known[text] = piece
        self._size += len(text)
        return piece


def _is_direct(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether calling a tokenizer is calling its pipeline: its class may do more in Python."""
    calls = [(getattr(type(tokenizer), name, None), getattr(PreTrainedTokenizerFast, name, None)) for name in _CALLS]
    return all(own is not None and own is common for own, common in calls)


def _ready(tokenizer: PreTrainedTokenizerBase) -> Tokenizer:
    """The pipeline as a call of the tokenizer leaves it: without the settings of earlier calls."""
    backend = tokenizer.backend_tokenizer
    if backend.truncation is not None:
        backend.no_truncation()
    if backend.padding is not None:
        backend.no_padding()
    if backend.encode_special_tokens != tokenizer.split_special_tokens:
        backend.encode_special_tokens = tokenizer.split_special_tokens
    return backend


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
