"""Converts messages to tokens and a mask of the assistant's tokens, by turns or by MiniMind's rule.

    messages -> chat template -> text, turns -> tokens with places -> mask: 1 for tokens of a turn     TurnEncoder
    messages -> chat template -> text -> tokens -> mask: 1 between markers                             MiniMindEncoder

What counts in a turn: its text and the marker that closes it. A token counts if it contains a character of the text, so
a token that a header and an answer share counts; or if it lies inside the marker.

MiniMind's rule: every token after `<bos>assistant` and a newline, up to and including `<eos>` and a newline, counts. It
loses a turn whose first characters merge with the header into one token, and it counts a user's text that contains the
markers. For all other rows both give the same tokens and masks.
"""

from __future__ import annotations

import abc
import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerBase

from minimind.data.control_tokens import ControlTokens
from minimind.data.sources import RowError
from minimind.data.template import ChatTemplate, Messages, TemplateInput
from minimind.data.turn_markers import TurnMarkers, find_markers
from minimind.data.turns import Turn, find_turns
from minimind.errors import DataError

EMPTY_THINK = "<think>\n\n</think>\n\n"
# Values of --mask.
TURNS, MINIMIND = "turns", "minimind"


class TokenizedRow(NamedTuple):
    """A tokenised conversation: token ids, and a mask that is 1 for the assistant's tokens and 0 for others."""

    tokens: list[int]
    mask: list[int]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ComparedRow:
    """A tokenised conversation, and whether MiniMind's rule gives other tokens or another mask for it."""

    row: TokenizedRow
    differs: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncodingOptions:
    """How conversations are encoded.

    Attributes:
        mask: TURNS or MINIMIND.
        empty_think_ratio: share of the pairs that keep their empty `<think>` block. MiniMind-3's template writes such a
            block into every answer, and its data set removes most of them at random. Here the random number depends on
            the line number only, so it is the same in every run and for both halves of a pair. 1 keeps all.
        template_kwargs: variables of the template for every row; a row's own override them.
        last_turn_only: only the last turn of the assistant counts.
    """

    mask: str = TURNS
    empty_think_ratio: float = 1.0
    template_kwargs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    last_turn_only: bool = False


class ConversationEncoder(abc.ABC):
    """Encodes conversations.

    Args:
        tokenizer: must have a chat template.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, options: EncodingOptions) -> None:
        self.tokenizer, self.options = tokenizer, options
        self.template = ChatTemplate(tokenizer)

    @abc.abstractmethod
    def encode(
        self,
        messages: Messages,
        row_number: int,
        tools: Sequence[Any] | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> TokenizedRow:
        """Tokens and mask of a whole conversation.

        Args:
            row_number: line number of the pair in its file.
            tools: JSON schemas of the tools that the assistant may call.
            template_kwargs: variables of the template for this row.

        Raises:
            RowError: the template rejects the conversation, or an assistant's turn is not found.
        """

    def encode_compared(
        self,
        messages: Messages,
        row_number: int,
        tools: Sequence[Any] | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> ComparedRow:
        """As `encode`, compared with MiniMind's rule where the tokenizer's template writes its markers."""
        return ComparedRow(row=self.encode(messages, row_number, tools, template_kwargs), differs=False)

    @abc.abstractmethod
    def key(self) -> list[Any]:
        """JSON values that tell two encoders with different results for the same tokenizer apart."""

    def _given(self, tools: Sequence[Any] | None, template_kwargs: Mapping[str, Any] | None) -> TemplateInput:
        return TemplateInput(tools=tools, arguments={**self.options.template_kwargs, **(template_kwargs or {})})

    def _drops_thinks(self, text: str, row_number: int) -> bool:
        return EMPTY_THINK in text and _draw(row_number) >= self.options.empty_think_ratio


class TurnEncoder(ConversationEncoder):
    """Counts the assistant's turns as the template renders them.

    Raises:
        DataError: the tokenizer has no chat template or gives no places of tokens, or the template cannot render a
            conversation of a user and an assistant.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, options: EncodingOptions) -> None:
        super().__init__(tokenizer, options)
        self._controls = ControlTokens(tokenizer)
        self._markers: dict[str, TurnMarkers] = {}
        try:
            self._markers_for(self._given(None, None))
        except RowError as error:
            raise DataError(
                f"{tokenizer.name_or_path}: {error}; use a template for conversations of 'user' and 'assistant' "
                "(--chat_template)"
            ) from error
        try:
            self._minimind_rule: MiniMindEncoder | None = MiniMindEncoder(tokenizer, options)
        except DataError:
            self._minimind_rule = None  # another family's template

    def encode(
        self,
        messages: Messages,
        row_number: int,
        tools: Sequence[Any] | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> TokenizedRow:
        return self._encode(messages, row_number, tools, template_kwargs)[0]

    def encode_compared(
        self,
        messages: Messages,
        row_number: int,
        tools: Sequence[Any] | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> ComparedRow:
        row, shielded = self._encode(messages, row_number, tools, template_kwargs)
        rule = self._minimind_rule
        # A shielded row has other tokens: the rule takes special tokens in messages for control tokens.
        differs = rule is not None and (shielded or rule.mask(row.tokens) != row.mask)
        return ComparedRow(row=row, differs=differs)

    def _encode(
        self,
        messages: Messages,
        row_number: int,
        tools: Sequence[Any] | None,
        template_kwargs: Mapping[str, Any] | None,
    ) -> tuple[TokenizedRow, bool]:
        """The row, and whether its messages contain special tokens."""
        given = self._given(tools, template_kwargs)
        (messages, tools), shielded = self._controls.shield((list(messages), tools))
        text, turns = find_turns(
            self.template, self._markers_for(given), messages, dataclasses.replace(given, tools=tools)
        )
        if self._drops_thinks(text, row_number):
            text, turns = _without_empty_thinks(text, turns)
        tokens = self._controls.tokenize(text, shielded)
        mask = np.zeros(len(tokens.ids), np.uint8)
        for turn in turns[-1:] if self.options.last_turn_only else turns:
            mask |= _counted(tokens.starts, tokens.ends, turn)
        return TokenizedRow(tokens.ids, mask.tolist()), shielded

    def key(self) -> list[Any]:
        # The markers follow from the template and the special tokens, which are part of the tokenizer.
        return [TURNS, *_values(self.options)]

    def _markers_for(self, given: TemplateInput) -> TurnMarkers:
        # Arguments such as enable_thinking change what a template writes. Few rows have arguments of their own.
        key = json.dumps(given.arguments, sort_keys=True, default=str)
        if key not in self._markers:
            if self.template.marks_generation(given):
                self._markers[key] = TurnMarkers(header="", end="", last_end="")  # not used
            else:
                self._markers[key] = find_markers(self.template, given)
        return self._markers[key]


class MiniMindEncoder(ConversationEncoder):
    """MiniMind's rule to the letter.

    Attributes:
        start, end: tokens of the markers that open and close an assistant turn.

    Raises:
        DataError: the tokenizer has no chat template, or its template does not write these markers.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, options: EncodingOptions) -> None:
        super().__init__(tokenizer, options)
        start, end = f"{tokenizer.bos_token}assistant\n", f"{tokenizer.eos_token}\n"
        self.start, self.end = self._ids(start), self._ids(end)
        sample = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]
        try:
            text = self.template.render(sample, self._given(None, None))
        except RowError as error:
            raise DataError(f"{tokenizer.name_or_path}: {error}") from error
        if start not in text or not text.endswith(end):
            raise DataError(
                f"{tokenizer.name_or_path}: MiniMind's rule needs a chat template that writes {start!r} before an "
                f"answer and {end!r} after it; use --mask turns"
            )

    def encode(
        self,
        messages: Messages,
        row_number: int,
        tools: Sequence[Any] | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> TokenizedRow:
        text = self.template.render(messages, self._given(tools, template_kwargs))
        if self._drops_thinks(text, row_number):
            text = text.replace(EMPTY_THINK, "")
        tokens = self._ids(text)
        return TokenizedRow(tokens, self.mask(tokens))

    def key(self) -> list[Any]:
        return [MINIMIND, *_values(self.options), self.start, self.end]

    def mask(self, tokens: list[int]) -> list[int]:
        """1 for each token after a start marker up to and including the next end marker, or up to the row's end."""
        mask = [0] * len(tokens)
        position = 0
        while (start := _find(tokens, self.start, position)) is not None:
            begin = start + len(self.start)
            end = _find(tokens, self.end, begin)
            stop = len(tokens) if end is None else end + len(self.end)
            if self.options.last_turn_only:
                mask[:begin] = [0] * begin
            mask[begin:stop] = [1] * (stop - begin)
            position = stop
        return mask

    def _ids(self, text: str) -> list[int]:
        # The template has written the special tokens already; the tokenizer would add a second <bos>.
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]


def build_encoder(tokenizer: PreTrainedTokenizerBase, options: EncodingOptions) -> ConversationEncoder:
    """The encoder for a run's options.

    Raises:
        DataError: the tokenizer or its template cannot be used with these options.
    """
    return (MiniMindEncoder if options.mask == MINIMIND else TurnEncoder)(tokenizer, options)


def encode_conversation(
    messages: Messages,
    tokenizer: PreTrainedTokenizerBase,
    tools: Sequence[Any] | None = None,
    template_kwargs: Mapping[str, Any] | None = None,
) -> TokenizedRow:
    """Token ids of a conversation, and a mask that is 1 for the assistant's tokens, as training sees them.

    Args:
        messages: `{"role": ..., "content": ...}` for each message.
        tokenizer: a tokenizer with a chat template.
        tools: JSON schemas of the tools that the assistant may call.
        template_kwargs: further variables of the chat template, e.g. `{"enable_thinking": False}`.

    Returns:
        (tokens, mask): two lists of the same length. Nothing is truncated.

    Raises:
        DataError: the tokenizer or its template cannot be used.
        RowError: a `ValueError`; the template rejects the conversation, or an assistant's turn is not found in the
            rendered text.
    """
    return TurnEncoder(tokenizer, EncodingOptions()).encode(messages, 0, tools, template_kwargs)


def _counted(starts: Any, ends: Any, turn: Turn) -> Any:
    """Which tokens count for a turn: (tokens,) bool."""
    # The parts of a special token's text inside a message have no length; they lie where the text begins.
    touches = (starts < turn.end) & ((ends > turn.start) | ((ends == starts) & (starts >= turn.start)))
    return touches & ((starts < turn.text_end) | ((starts >= turn.start) & (ends <= turn.end)))


def _without_empty_thinks(text: str, turns: list[Turn]) -> tuple[str, list[Turn]]:
    """Remove every empty block, as MiniMind's data set does, and move the turns accordingly."""

    def moved(place: int) -> int:
        # Blocks that begin before the place, each by as much of it as lies before the place.
        starts, position = [], text.find(EMPTY_THINK)
        while 0 <= position < place:
            starts.append(position)
            position = text.find(EMPTY_THINK, position + len(EMPTY_THINK))
        return place - sum(min(len(EMPTY_THINK), place - start) for start in starts)

    changed = [Turn(start=moved(t.start), text_end=moved(t.text_end), end=moved(t.end)) for t in turns]
    return text.replace(EMPTY_THINK, ""), changed


def _values(options: EncodingOptions) -> list[Any]:
    kwargs = json.dumps(options.template_kwargs, sort_keys=True)
    return [options.empty_think_ratio, kwargs, options.last_turn_only]


def _find(tokens: list[int], wanted: list[int], start: int) -> int | None:
    """First position at or after `start` where `tokens` contains `wanted`, or None."""
    first, length = wanted[0], len(wanted)
    while True:
        try:
            start = tokens.index(first, start)
        except ValueError:
            return None
        if tokens[start : start + length] == wanted:
            return start
        start += 1


def _draw(row_number: int) -> float:
    """A pseudo-random number in [0, 1) that depends on the row number only."""
    digest = hashlib.sha256(f"empty-think:{row_number}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
