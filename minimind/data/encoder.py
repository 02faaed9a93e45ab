"""Converts messages to tokens and a mask of the assistant's tokens, by turns or by MiniMind's rule.

    messages -> chat template -> text, turns -> tokens with places -> mask: 1 for tokens of a turn

What counts in a turn: its text and the marker that closes it. A token counts if it contains a character of the text, so
a token that a header and an answer share counts; or if it lies inside the marker. Where neither merged tokens nor
special tokens in messages are in the way, MiniMind's rule (minimind_rule.py) gives the same tokens and masks.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from minimind.data.compared_turn import Turn
from minimind.data.control_tokens import ControlTokens
from minimind.data.encoding import (
    EMPTY_THINK,
    MINIMIND,
    TEXT,
    TURNS,
    ComparedRow,
    ConversationEncoder,
    EncodingOptions,
    RowEncoder,
    TokenizedRow,
    option_values,
)
from minimind.data.messages import read_messages
from minimind.data.minimind_rule import MiniMindEncoder
from minimind.data.sources import RowError
from minimind.data.template import Messages, TemplateInput
from minimind.data.text_encoder import TextEncoder
from minimind.data.tool_arguments import fit_arguments
from minimind.data.turn_markers import TurnMarkers, find_markers
from minimind.data.turns import find_turns
from minimind.errors import DataError

# Markers are kept for this many combinations of template, arguments and tools. Files have few, or one for each row.
_MARKERS_KEPT = 256


class TurnEncoder(ConversationEncoder):
    """Counts the assistant's turns as the template renders them.

    Raises:
        DataError: the tokenizer has no chat template or gives no places of tokens, or the template cannot render a
            conversation of a user and an assistant.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, options: EncodingOptions) -> None:
        super().__init__(tokenizer, options)
        self._markers: dict[str, TurnMarkers] = {}
        # Template and markers of rows without tools and arguments of their own: most of a file.
        self._own: tuple[str | None, TurnMarkers] = (None, TurnMarkers(header="", end="", last_end=""))
        try:
            given = self.given(None, None)
            markers = self._markers_for(given)
            self._own = (self.template.source(given), markers)
        except RowError as error:
            raise DataError(
                f"{tokenizer.name_or_path}: {error}; use a template for conversations of 'user' and 'assistant' "
                "(--chat_template)"
            ) from error
        self._controls = ControlTokens(tokenizer, (markers.header, markers.end, markers.last_end))
        try:
            self._minimind_rule: MiniMindEncoder | None = MiniMindEncoder(tokenizer, options)
        except DataError:
            self._minimind_rule = None  # another family's template

    def _encode(
        self,
        messages: Messages,
        row_number: int,
        given: TemplateInput,
        own: Mapping[str, Any],
        other: Messages | None,
    ) -> ComparedRow:
        markers = self._markers_for(given)
        shielded = self._controls.shield(messages, given, own)
        messages, given = shielded.messages, shielded.given
        # Messages that were shielded are no longer those of the other half's rendering.
        text, turns = find_turns(self.template, markers, messages, given, None if shielded.number else other)
        self._controls.check_written(text, shielded)
        rendered = text
        if self.drops_thinks(text, row_number):
            text, turns = _without_empty_thinks(text, turns)
        neutral = self._controls.neutral(messages, given)
        # Deleting or joining texts, as templates and the line above do, must not make a control token.
        again = self.template.render(*neutral) if neutral else rendered
        if again is not text and self._controls.count(again) != self._controls.count(text):
            raise RowError("texts of messages become a special token where they are joined")
        tokens = self._controls.tokenize(text, shielded=shielded.number > 0)
        mask = np.zeros(len(tokens.ids), np.uint8)
        for turn in turns[-1:] if self.options.last_turn_only else turns:
            tokens.mark(mask, turn.start, turn.text_end, turn.end)
        row = TokenizedRow(tokens.ids, mask.tolist())
        rule = self._minimind_rule
        # A shielded row has other tokens: the rule takes special tokens in messages for control tokens.
        differs = rule is not None and (shielded.number > 0 or rule.mask(row.tokens) != row.mask)
        return ComparedRow(row=row, differs=differs)

    def foresee(self, conversations: Iterable[tuple[Messages, int]]) -> None:
        given = self.given(None, None)
        if self.template.marks_generation(given):
            return
        messages, numbers = itertools.tee(conversations)
        texts = self.template.foresee((one for one, _ in messages), given)
        self._controls.foresee(
            text.replace(EMPTY_THINK, "") if self.drops_thinks(text, number) else text
            for text, (_, number) in zip(texts, numbers, strict=True)
            if text is not None
        )

    def key(self) -> list[Any]:
        # The markers follow from the template and the special tokens, which are part of the tokenizer.
        return [TURNS, *option_values(self.options)]

    def _markers_for(self, given: TemplateInput) -> TurnMarkers:
        # Arguments such as enable_thinking change what a template writes. Few rows have arguments of their own.
        # A tokenizer may have another template for conversations with tools.
        source = self.template.source(given)
        if given.tools is None and given.arguments == self.options.template_kwargs and source == self._own[0]:
            return self._own[1]
        key = repr((source, sorted(given.arguments.items()), given.tools))
        if key not in self._markers:
            if len(self._markers) > _MARKERS_KEPT:
                self._markers.clear()
            try:
                self._markers[key] = find_markers(self.template, given)
            except RowError:
                if not self.template.marks_generation(given):
                    raise
                self._markers[key] = TurnMarkers(header="", end="", last_end="")
        return self._markers[key]


def build_encoder(tokenizer: PreTrainedTokenizerBase, options: EncodingOptions) -> RowEncoder:
    """The encoder for a run's options.

    Raises:
        DataError: the tokenizer or its template cannot be used with these options.
    """
    encoders: Mapping[str, type[RowEncoder]] = {TURNS: TurnEncoder, MINIMIND: MiniMindEncoder, TEXT: TextEncoder}
    return encoders[options.mask](tokenizer, options)


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
        RowError: a `ValueError`; a message is invalid, the template rejects the conversation, or an assistant's turn is
            not found in the rendered text.
    """
    encoder = TurnEncoder(tokenizer, EncodingOptions())
    read = read_messages("messages", list(messages))
    fitted = fit_arguments(read, encoder.template, encoder.given(tools, template_kwargs))
    return encoder.encode(fitted, 0, tools, template_kwargs)


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
