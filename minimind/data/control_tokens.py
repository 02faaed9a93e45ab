"""Tokenises rendered text so that only the template can write control tokens.

    message texts -> shield: special tokens written as private characters -> template -> text -> tokenize -> tokens

A special token inside a message, such as a user's `<|im_start|>`, is tokenised as the text that it is. Added tokens
that are not special, such as `<think>` and `<tool_call>` of many tokenizers, keep their ids wherever they are written.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from minimind.data.sources import RowError
from minimind.errors import DataError

# Special token number i is written as the i-th character of one of these planes, which Unicode keeps for private use:
# in messages, so that the template does not see the token; in the tokenizer's copy, so that it does not see the text.
_SHIELD, _RENAMED = 0xF0000, 0x100000
_PRIVATE = re.compile("[\U000f0000-\U0010ffff]")
Value = TypeVar("Value")


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Texts of all special tokens, longest first."""
    added = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    return sorted({*added, *map(str, tokenizer.all_special_tokens)} - {""}, key=lambda text: (-len(text), text))


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


class ControlTokens:
    """Keeps control tokens in the hands of the template.

    Args:
        tokenizer: must give the offsets of its tokens, as every tokenizer with a `tokenizer.json` does.

    Raises:
        DataError: the tokenizer gives no offsets.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        if not getattr(tokenizer, "is_fast", False):
            raise DataError(
                f"{tokenizer.name_or_path}: the tokenizer does not give the places of its tokens in a text, which "
                "finding the assistant's turns needs; use a tokenizer with a tokenizer.json, or --mask minimind"
            )
        self.tokenizer = tokenizer
        self._specials = special_tokens(tokenizer)
        self._numbers = {text: number for number, text in enumerate(self._specials)}
        # Without special tokens this pattern never matches.
        self._pattern = re.compile("|".join(map(re.escape, self._specials)) or r"(?!)")

    def shield(self, value: Value) -> tuple[Value, bool]:
        """A copy of messages or tools in which no text contains a special token, and whether any did.

        Raises:
            RowError: a text with special tokens also contains characters of Unicode's private planes 15 and 16.
        """
        try:
            texts = list(_texts(value))
        except RecursionError as error:
            raise RowError("a message is nested too deeply") from error
        if not any(map(self._pattern.search, texts)):
            return value, False
        if any(map(_PRIVATE.search, texts)):
            raise RowError("a message contains a special token of the tokenizer and private characters (above U+F0000)")
        return _map_texts(value, lambda text: self._pattern.sub(self._shielded, text)), True

    def tokenize(self, text: str, shielded: bool) -> TokenizedText:
        """Tokens of a rendered text.

        Args:
            shielded: the text was rendered from messages that `shield` has changed.
        """
        if not shielded:
            # The template has written the special tokens already; the tokenizer would add a second <bos>.
            encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
            return _tokenized(encoded["input_ids"], encoded["offset_mapping"], len(text))
        restored, places = self._restore(text)
        encoding = self._without_special_texts.encode(restored, add_special_tokens=False)
        tokens = _tokenized(encoding.ids, encoding.offsets, len(restored))
        return TokenizedText(ids=tokens.ids, starts=places[tokens.starts], ends=places[tokens.ends])

    def _shielded(self, match: re.Match[str]) -> str:
        return chr(_SHIELD + self._numbers[match[0]])

    def _restore(self, text: str) -> tuple[str, NDArray[np.int64]]:
        """The text in which special tokens of the template are private characters and those of messages are text.

        Returns:
            The new text, and for each of its positions, the end included, the position in the old text.
        """
        parts: list[str] = []
        places: list[int] = []
        position = 0
        shields = re.compile(f"[{chr(_SHIELD)}-{chr(_RENAMED - 1)}]|{self._pattern.pattern}")
        for match in shields.finditer(text):
            parts.append(text[position : match.start()])
            places.extend(range(position, match.start()))
            if match[0] in self._numbers:
                new = chr(_RENAMED + self._numbers[match[0]])
            else:
                new = self._specials[ord(match[0]) - _SHIELD]
            parts.append(new)
            places.extend([match.start()] * len(new))
            position = match.end()
        parts.append(text[position:])
        places.extend(range(position, len(text) + 1))
        return "".join(parts), np.array(places, np.int64)

    @functools.cached_property
    def _without_special_texts(self) -> Tokenizer:
        """A copy of the tokenizer in which the special tokens have private characters as their texts."""
        renamed = {text: chr(_RENAMED + number) for text, number in self._numbers.items()}
        pipeline = json.loads(self.tokenizer.backend_tokenizer.to_str())
        for token in pipeline["added_tokens"]:
            token["content"] = renamed.get(token["content"], token["content"])
        model = pipeline["model"]
        if isinstance(model["vocab"], dict):
            model["vocab"] = {renamed.get(text, text): number for text, number in model["vocab"].items()}
        else:  # Unigram: pairs of text and score, in the order of the ids
            model["vocab"] = [[renamed.get(text, text), score] for text, score in model["vocab"]]
        if model.get("unk_token") in renamed:
            model["unk_token"] = renamed[model["unk_token"]]
        # It only adds special tokens around a text, by names that no longer exist, and trims offsets.
        pipeline["post_processor"] = None
        pipeline["truncation"] = pipeline["padding"] = None
        return Tokenizer.from_str(json.dumps(pipeline))


def _tokenized(ids: list[int], offsets: list[tuple[int, int]], length: int) -> TokenizedText:
    """Tokens whose offsets leave no gap: some tokenizers exclude spaces from them, which then belong to the next token.

    Args:
        length: characters of the text.
    """
    given = np.array(offsets, np.int64).reshape(-1, 2)
    starts, ends = given[:, 0].copy(), np.maximum.accumulate(given[:, 1])
    if len(starts):
        before = np.concatenate(([0], ends[:-1]))
        starts = np.where(starts > before, before, starts)
        ends[-1] = length
    return TokenizedText(ids=list(ids), starts=starts, ends=ends)


def _texts(value: Any) -> Iterator[str]:
    """Every string in a JSON value, keys and roles excepted."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            if key != "role":
                yield from _texts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)


def _map_texts(value: Any, change: Callable[[str], str]) -> Any:
    """A copy of a JSON value in which every string, keys and roles excepted, has been changed."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {key: item if key == "role" else _map_texts(item, change) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_map_texts(item, change) for item in value]
    return value
