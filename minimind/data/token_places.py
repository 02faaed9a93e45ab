"""Which characters of a text each token covers, and copies of a tokenizer's pipeline that tell it exactly.

ids, offsets of the tokenizers library -> places_of -> TokenizedText: every character belongs to a token
"""

from __future__ import annotations

import dataclasses
import json
import weakref
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenizedText:
    """Tokens of a text.

    Attributes:
        ids: token ids.
        starts, ends: (tokens,) int64. Token i covers the characters starts[i] to ends[i] of the text. Every character
            belongs to a token; a character that is several tokens belongs to each of them.
    """

    ids: list[int]
    starts: NDArray[np.int64]
    ends: NDArray[np.int64]

    def mark(self, mask: NDArray[np.uint8], start: int, text_end: int, end: int) -> None:
        """Set a mask to 1 for the tokens that count of a turn.

        Args:
            mask: (tokens,), changed.
            start, text_end, end: characters of the turn's text, start to text_end, and of the marker that closes it.
        """
        starts, ends = self.starts, self.ends
        in_text = np.maximum(starts, start) < np.minimum(ends, text_end)
        # The parts of a special token's text inside a message have no length; they lie where the text begins.
        in_turn = (starts >= start) & (starts < end) & (ends <= end)
        mask |= in_text | in_turn


def places_of(
    ids: list[int], offsets: list[tuple[int, int]] | NDArray[np.int64], text: str, control: NDArray[np.bool_]
) -> TokenizedText:
    """Tokens whose places leave no gap.

    Tokenizers exclude spaces and dropped characters from offsets. These belong to the next token. If that is a control
    token, which stands for itself alone, they belong to the token before it.

    Args:
        control: (tokens,), which tokens are control tokens.
    """
    given = np.array(offsets, np.int64).reshape(-1, 2)
    starts, ends = given[:, 0].copy(), np.maximum.accumulate(given[:, 1])
    if not len(starts):
        return TokenizedText(ids=[], starts=starts, ends=ends)
    # Control tokens that strip white space beside them include it in their offsets.
    for index in np.flatnonzero(control):
        own = text[starts[index] : ends[index]]
        ends[index] -= len(own) - len(own.rstrip())
        starts[index] += len(own) - len(own.lstrip())
    for index in np.flatnonzero(starts > np.concatenate(([0], ends[:-1]))):
        before = ends[index - 1] if index else 0
        if control[index] and index:
            ends[index - 1] = starts[index]
        else:
            starts[index] = before
    if not control[-1]:
        ends[-1] = len(text)
    return TokenizedText(ids=list(ids), starts=starts, ends=ends)


def trims_spaces(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer's offsets leave out spaces at both ends of a token, which then look like the next one's."""
    processor = tokenizer.backend_tokenizer.post_processor
    return processor is not None and b'"trim_offsets":true' in processor.__getstate__().replace(b" ", b"")


def alphabet_of(tokenizer: PreTrainedTokenizerBase) -> frozenset[str] | None:
    """The characters that the tokenizer knows, if it leaves out all others; None if it leaves out none.

    Byte-pair encodings without a token for unknown text do so, and their offsets are wrong then.
    """
    backend = tokenizer.backend_tokenizer
    model = backend.model
    if type(model).__name__ != "BPE" or model.unk_token is not None or model.byte_fallback:
        return None
    parts = (backend.normalizer, backend.pre_tokenizer)
    if any(b"ByteLevel" in part.__getstate__() for part in parts if part is not None):
        return None
    return frozenset(text for text in tokenizer.get_vocab() if len(text) == 1)


# Making a copy takes a second for a large vocabulary: one for each tokenizer and its state is kept.
_COPIES: weakref.WeakKeyDictionary[PreTrainedTokenizerBase, dict[Any, Tokenizer]] = weakref.WeakKeyDictionary()


def pipeline_of(tokenizer: PreTrainedTokenizerBase, names: Mapping[str, str]) -> Tokenizer:
    """A copy of the tokenizer's pipeline without its post-processor.

    The post-processor adds special tokens around a text, which a template has written already, and trims offsets.

    Args:
        names: new texts of added tokens, by their present ones. Their ids stay.
    """
    backend = tokenizer.backend_tokenizer
    state = (backend.get_vocab_size(with_added_tokens=True), tuple(names.items()))
    copies = _COPIES.setdefault(tokenizer, {})
    if state not in copies:
        copies.clear()  # of an earlier state of the tokenizer
        copies[state] = _renamed(json.loads(backend.to_str()), names)
    return copies[state]


def _renamed(pipeline: dict[str, Any], names: Mapping[str, str]) -> Tokenizer:
    for token in pipeline["added_tokens"]:
        token["content"] = names.get(token["content"], token["content"])
    model = pipeline["model"]
    if isinstance(model["vocab"], dict):
        model["vocab"] = {names.get(text, text): number for text, number in model["vocab"].items()}
    else:  # Unigram: pairs of text and score, in the order of the ids
        model["vocab"] = [[names.get(text, text), score] for text, score in model["vocab"]]
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
    if "merges" in model:
        pairs = ((merge.split(" ") if isinstance(merge, str) else merge, merge) for merge in model["merges"])
        # Merges that make or use a renamed token refer to a text that is no longer in the vocabulary.
        model["merges"] = [merge for pair, merge in pairs if not {*pair, "".join(pair)} & names.keys()]
    pipeline["post_processor"] = pipeline["truncation"] = pipeline["padding"] = None
    return Tokenizer.from_str(json.dumps(pipeline))
