"""Tokenises rendered text so that only the template can write control tokens.

    message texts -> shield: special tokens written as private characters -> template -> text -> tokenize -> tokens

A special token inside a message, such as a user's `<|im_start|>`, is tokenised as the text that it is. Other added
tokens, such as `<think>` and `<tool_call>` of many tokenizers, keep their ids wherever they are written, unless they
are part of a marker of assistant turns. What cannot be kept apart is refused.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from minimind.data.byte_places import BytePlaces
from minimind.data.sources import RowError
from minimind.data.template import Messages, TemplateInput
from minimind.data.text_pieces import TextPieces
from minimind.data.token_places import TokenizedText, alphabet_of, pipeline_of, places_of, trims_spaces
from minimind.errors import DataError

# Special token number i is written as the i-th character of one of these planes, which Unicode keeps for private use:
# in messages, so that the template does not see the token; in the tokenizer's copy, so that it does not see the text.
_SHIELD, _RENAMED = 0xF0000, 0x100000
_PRIVATE = re.compile("[\U000f0000-\U0010ffff]")
_SHIELDS = re.compile("[\U000f0000-\U000fffff]")
# Tags of reasoning are content: an answer that contains them must reach the template as it is.
_REASONING = re.compile(r"think|reason", re.IGNORECASE)


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Texts of all special tokens, longest first."""
    added = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    return _longest_first({*added, *map(str, tokenizer.all_special_tokens)})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shielded:
    """A conversation in which no text contains a control token, and the number of those that were replaced."""

    messages: Messages
    given: TemplateInput
    number: int


class ControlTokens:
    """Keeps control tokens in the hands of the template.

    Args:
        tokenizer: must give the offsets of its tokens, as every tokenizer with a `tokenizer.json` does.
        markers: markers of assistant turns. Added tokens in them are control tokens, even if they are not special.

    Raises:
        DataError: the tokenizer gives no offsets.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, markers: Sequence[str] = ()) -> None:
        if not getattr(tokenizer, "is_fast", False):
            raise DataError(
                f"{tokenizer.name_or_path}: the tokenizer does not give the places of its tokens in a text, which "
                "finding the assistant's turns needs; use a tokenizer with a tokenizer.json, or --mask minimind"
            )
        self.tokenizer = tokenizer
        added = {token.content: token for token in tokenizer.added_tokens_decoder.values()}
        in_markers = {text for text in added if any(text in marker for marker in markers)}
        plain = {text for text in special_tokens(tokenizer) if not _REASONING.search(text)}
        # A special token that was only named, without an id, is ordinary text.
        ids = {text: tokenizer.backend_tokenizer.token_to_id(text) for text in _longest_first(plain | in_markers)}
        self._controls = [text for text, number in ids.items() if number is not None]
        self._ids = np.array([ids[text] for text in self._controls], np.int64)
        self._pieces = TextPieces(tokenizer, self._controls)
        self._numbers = {text: number for number, text in enumerate(self._controls)}
        # Without control tokens this pattern never matches.
        self._pattern = re.compile("|".join(map(re.escape, self._controls)) or r"(?!)")
        fragments = {part for text in self._controls if len(text) > 3 for part in (text[:3], text[-3:])}
        self._fragments = re.compile("|".join(map(re.escape, sorted(fragments))) or r"(?!)")
        # Most rows have none of these characters, and a search for one in all texts at once is the fastest.
        self._rare = "".join(sorted({_rare_sign(part) for part in fragments.union(self._controls)}))
        self._normalizes = any(text in added and added[text].normalized for text in self._controls)
        self._alphabet = alphabet_of(tokenizer)

    def shield(self, messages: Messages, given: TemplateInput, own: Mapping[str, Any]) -> Shielded:
        """The conversation without control tokens in its texts.

        Args:
            own: those of the template's arguments that come from the row.

        Raises:
            RowError: a text with control tokens also contains characters of Unicode's private planes 15 and 16, or it
                becomes a control token when the tokenizer normalises it; or the texts are nested too deeply.
        """
        number = 0

        def replaced(text: str) -> str:
            nonlocal number
            shielded, count = self._pattern.subn(self._shielded, text)
            number += count
            return shielded

        try:
            texts = _texts([messages, given.tools, own])
            self._check_normalized(texts)
            if not (self._has_rare(texts) and any(map(self._pattern.search, texts))):
                return Shielded(messages=messages, given=given, number=0)
            if any(map(_PRIVATE.search, texts)):
                raise RowError("a message contains a control token of the tokenizer and private characters")
            arguments = {**given.arguments, **_map_texts(dict(own), replaced)}
            tools = _map_texts(given.tools, replaced)
            return Shielded(
                messages=[_map_message(message, replaced) for message in messages],
                given=TemplateInput(tools=tools, arguments=arguments),
                number=number,
            )
        except RecursionError as error:
            raise RowError("a message is nested too deeply") from error

    def check_written(self, text: str, shielded: Shielded) -> None:
        """Check that the template has written every shielded token as it is.

        Raises:
            RowError: it left some out, repeated them or escaped them.
        """
        if len(_SHIELDS.findall(text)) != shielded.number and shielded.number:
            raise RowError("the chat template does not write a special token inside a message as the text that it is")

    def neutral(self, messages: Messages, given: TemplateInput) -> tuple[Messages, TemplateInput] | None:
        """The conversation without parts of control tokens in its texts; None if it has no such parts.

        A template that deletes or joins texts could make a control token of two parts.
        """
        texts = _texts([messages, given.tools, given.arguments])
        if not (self._has_rare(texts) and any(map(self._fragments.search, texts))):
            return None

        def changed(text: str) -> str:
            return self._fragments.sub("...", text)

        arguments = _map_texts(dict(given.arguments), changed)
        messages = [_map_message(message, changed) for message in messages]
        return messages, TemplateInput(tools=_map_texts(given.tools, changed), arguments=arguments)

    def _has_rare(self, texts: Sequence[str]) -> bool:
        joined = "\n".join(texts)
        return any(sign in joined for sign in self._rare)

    def count(self, text: str) -> int:
        """The number of control tokens in a text."""
        return len(self._pattern.findall(text))

    def foresee(self, texts: Iterable[str]) -> None:
        """Tokenise rendered texts together, so that `tokenize` knows their tokens; one that is rejected stops it."""
        with contextlib.suppress(RowError), _rejections():
            self._pieces.foresee(texts)

    def tokenize(self, text: str, *, shielded: bool) -> TokenizedText | BytePlaces:
        """Tokens of a rendered text.

        Args:
            shielded: the text was rendered from a conversation in which `shield` has replaced tokens.

        Raises:
            RowError: the tokenizer rejects the text, leaves out characters of it, or does not keep the control tokens
                of the template apart from those of messages.
        """
        self._check_alphabet(text)
        if not shielded:
            with _rejections():
                found = self._pieces.encode_bytes(text)
            if found is not None:
                return BytePlaces(ids=found[0], ends=found[1], text=text)
            return self._encode(text, renamed=False)
        restored, places, expected = self._restore(text)
        tokens = self._encode(restored, renamed=True)
        if np.isin(tokens.ids, self._ids).sum() != expected:
            raise RowError("the tokenizer cannot keep a special token inside a message apart from the template's")
        return TokenizedText(ids=tokens.ids, starts=places[tokens.starts], ends=places[tokens.ends])

    def _encode(self, text: str, *, renamed: bool) -> TokenizedText:
        with _rejections():
            if renamed or trims_spaces(self.tokenizer):
                names = {control: chr(_RENAMED + number) for control, number in self._numbers.items()}
                encoding = pipeline_of(self.tokenizer, names if renamed else {}).encode(text, add_special_tokens=False)
                ids, offsets = encoding.ids, np.array(encoding.offsets, np.int64)
            else:
                ids, offsets = self._pieces.encode(text)
        return places_of(ids, offsets, text, np.isin(ids, self._ids))

    def _shielded(self, match: re.Match[str]) -> str:
        return chr(_SHIELD + self._numbers[match[0]])

    def _restore(self, text: str) -> tuple[str, NDArray[np.int64], int]:
        """The text in which control tokens of the template are private characters and those of messages are text.

        Returns:
            The new text; for each of its positions, the end included, the position in the old text; the number of
            control tokens of the template.
        """
        parts: list[str] = []
        places: list[int] = []
        position = controls = 0
        for match in self._shield_or_control.finditer(text):
            parts.append(text[position : match.start()])
            places.extend(range(position, match.start()))
            if match[0] in self._numbers:
                new = chr(_RENAMED + self._numbers[match[0]])
                controls += 1
            else:
                new = self._controls[ord(match[0]) - _SHIELD]
            parts.append(new)
            places.extend([match.start()] * len(new))
            position = match.end()
        parts.append(text[position:])
        places.extend(range(position, len(text) + 1))
        return "".join(parts), np.array(places, np.int64), controls

    @functools.cached_property
    def _shield_or_control(self) -> re.Pattern[str]:
        return re.compile(f"{_SHIELDS.pattern}|{self._pattern.pattern}")

    def _check_normalized(self, texts: Sequence[str]) -> None:
        """Raises RowError if a text becomes a control token only when the tokenizer normalises it."""
        normalizer = self.tokenizer.backend_tokenizer.normalizer if self._normalizes else None
        if normalizer is None:
            return
        for text in texts:
            if self._pattern.search(normalizer.normalize_str(text)) and not self._pattern.search(text):
                raise RowError("a message contains text that the tokenizer normalises to a special token")

    def _check_alphabet(self, text: str) -> None:
        """Raises RowError if the tokenizer would leave out a character."""
        if self._alphabet is None:
            return
        for character in set(self._pattern.sub("", text)):
            if not character.isspace() and character not in self._alphabet and not _PRIVATE.match(character):
                raise RowError(f"the tokenizer has no token for the character {character!r}")


@contextlib.contextmanager
def _rejections() -> Iterator[None]:
    """Turns whatever the tokenizers library raises into a RowError: plain exceptions, and panics that are none."""
    try:
        yield
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt | SystemExit | MemoryError):
            raise
        raise RowError(f"the tokenizer rejects the text ({type(error).__name__}: {error})") from error


def _longest_first(texts: set[str]) -> list[str]:
    return sorted(texts - {""}, key=lambda text: (-len(text), text))


def _rare_sign(text: str) -> str:
    """A character of a text that few other texts have."""
    return next((sign for sign in text if not sign.isalnum()), text[0])


def _texts(value: Any) -> list[str]:
    """Every string in a JSON value, keys included."""
    found: list[str] = []
    _collect(value, found)
    return found


def _collect(value: Any, found: list[str]) -> None:
    if isinstance(value, str):
        found.append(value)
    # Asking for `Mapping` takes long.
    elif isinstance(value, dict | Mapping):
        for key, item in value.items():
            _collect(key, found)
            _collect(item, found)
    elif isinstance(value, list | tuple):
        for item in value:
            _collect(item, found)


def _map_message(message: Mapping[str, Any], change: Callable[[str], str]) -> dict[str, Any]:
    """A copy of a message with changed texts; its own keys and its role are names that the template looks for."""
    return {key: item if key == "role" else _map_texts(item, change) for key, item in message.items()}


def _map_texts(value: Any, change: Callable[[str], str]) -> Any:
    """A copy of a JSON value in which every string has been changed, keys included."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {_map_texts(key, change): _map_texts(item, change) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_map_texts(item, change) for item in value]
    return value
