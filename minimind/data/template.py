"""Converts messages to tokens with the tokenizer's chat template, and masks the assistant's tokens.

    messages -> chat template -> text -> tokens, truncated -> mask between the markers of assistant turns

MiniMind's rule: every token after `<bos>assistant\\n` up to and including `<eos>\\n` counts. For a tokenizer with other
markers, the same rule is applied to the markers that its template writes in a sample conversation.
"""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any

from transformers import PreTrainedTokenizerBase

from minimind.errors import DataError

EMPTY_THINK = "<think>\n\n</think>\n\n"


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenizedRow:
    """One half of a pair: token ids, and a mask that is 1 for the assistant's tokens and 0 for others."""

    tokens: list[int]
    mask: list[int]


class ChatEncoder:
    """Encodes conversations as MiniMind's data set does.

    Args:
        tokenizer: must have a chat template.
        max_length: largest number of tokens of a row; longer rows are truncated at the end.
        empty_think_ratio: share of the pairs that keep their empty `<think>` block. MiniMind-3's template writes such a
            block into every answer, and its data set removes most of them at random. Here the random number depends on
            the line number only, so it is the same in every run and for both halves of a pair. 1 keeps all.

    Attributes:
        start, end: tokens of the markers that open and close an assistant turn.

    Raises:
        DataError: the tokenizer has no chat template, or the template does not mark the assistant's turns.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_length: int, empty_think_ratio: float = 1.0) -> None:
        if not tokenizer.chat_template:
            raise DataError(
                f"{tokenizer.name_or_path}: the tokenizer has no chat template; use a tokenizer that has one "
                "(--tokenizer_path)"
            )
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.empty_think_ratio = empty_think_ratio
        start, end = self._markers()
        self.start, self.end = self._ids(start), self._ids(end)
        if not self.start or not self.end:
            raise DataError(
                f"{tokenizer.name_or_path}: the chat template does not mark where an assistant turn starts "
                f"(found {start!r}) and ends (found {end!r}); use a template in the style of ChatML"
            )

    def encode(self, messages: list[dict[str, Any]], row_number: int) -> TokenizedRow:
        """Tokens and mask of a conversation, truncated to `max_length`.

        Args:
            row_number: line number of the pair in its file.

        Raises:
            Exception: any that the chat template raises.
        """
        text = self._render(messages)
        if EMPTY_THINK in text and _draw(row_number) >= self.empty_think_ratio:
            text = text.replace(EMPTY_THINK, "")
        tokens = self._ids(text)[: self.max_length]
        return TokenizedRow(tokens=tokens, mask=self.mask(tokens))

    def mask(self, tokens: list[int]) -> list[int]:
        """1 for each token after a start marker up to and including the next end marker, or up to the row's end."""
        mask = [0] * len(tokens)
        position = 0
        while (start := _find(tokens, self.start, position)) is not None:
            begin = start + len(self.start)
            end = _find(tokens, self.end, begin)
            stop = len(tokens) if end is None else end + len(self.end)
            mask[begin:stop] = [1] * (stop - begin)
            position = stop
        return mask

    def _render(self, messages: list[dict[str, Any]], add_generation_prompt: bool = False) -> str:
        return self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_generation_prompt)

    def _ids(self, text: str) -> list[int]:
        # The template has written the special tokens already; the tokenizer would add a second <bos>.
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def _markers(self) -> tuple[str, str]:
        """Texts that open and close an assistant turn, found in rendered sample conversations; empty if none."""
        user, answer = {"role": "user", "content": "Q"}, {"role": "assistant", "content": "ANSWER"}
        try:
            once, twice = self._render([user, answer]), self._render([user, answer, user, answer])
            opened = self._render([user], add_generation_prompt=True).removeprefix(self._render([user]))
        except Exception as error:
            # A chat template is a program and may raise any exception.
            raise DataError(
                f"{self.tokenizer.name_or_path}: the chat template cannot render a conversation ({error})"
            ) from error
        start, end = f"{self.tokenizer.bos_token}assistant\n", f"{self.tokenizer.eos_token}\n"
        if start in once and once.endswith(end):
            return start, end
        # The generation prompt is the start marker only if the template also writes it before answers.
        if opened not in twice.partition("ANSWER")[0].rpartition("Q")[2]:
            return "", ""
        # The end marker is the text that follows an answer both at the end and before another question: at the end a
        # template may add more, such as an end of text.
        after_once, after_first = once.partition("ANSWER")[2], twice.partition("ANSWER")[2]
        common = 0
        while common < min(len(after_once), len(after_first)) and after_once[common] == after_first[common]:
            common += 1
        return opened, after_once[:common]


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
