"""MiniMind's rule for the mask, to the letter.

    messages -> chat template -> text -> tokens -> mask: 1 between the markers of an assistant's turn

Every token after `<bos>assistant` and a newline, up to and including `<eos>` and a newline, counts. The rule loses a
turn whose first characters merge with the header into one token, and it counts a user's text that contains the markers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedTokenizerBase

from minimind.data.encoding import (
    EMPTY_THINK,
    MINIMIND,
    ComparedRow,
    ConversationEncoder,
    EncodingOptions,
    TokenizedRow,
    option_values,
)
from minimind.data.sources import RowError
from minimind.data.template import Messages, TemplateInput
from minimind.errors import DataError


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
            text = self.template.render(sample, self.given(None, None))
        except RowError as error:
            raise DataError(f"{tokenizer.name_or_path}: {error}") from error
        if start not in text or not text.endswith(end):
            raise DataError(
                f"{tokenizer.name_or_path}: MiniMind's rule needs a chat template that writes {start!r} before an "
                f"answer and {end!r} after it; use --mask turns"
            )

    def _encode(
        self,
        messages: Messages,
        row_number: int,
        given: TemplateInput,
        own: Mapping[str, Any],
        other: Messages | None,
    ) -> ComparedRow:
        text = self.template.render(messages, given)
        if self.drops_thinks(text, row_number):
            text = text.replace(EMPTY_THINK, "")
        tokens = self._ids(text)
        return ComparedRow(row=TokenizedRow(tokens, self.mask(tokens)), differs=False)

    def key(self) -> list[Any]:
        return [MINIMIND, *option_values(self.options), self.start, self.end]

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
