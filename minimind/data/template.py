"""Messages -> tokens and a mask of the assistant's tokens, by the tokenizer's own chat template.

MiniMind's rule: between `<bos>assistant\\n` and `<eos>\\n`, the end included, every token counts. For a tokenizer with
other markers the same rule runs on the markers that its template is seen to write.
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
    """One half of a pair: token ids and, for each, 1 if it counts as the assistant's, else 0."""

    tokens: list[int]
    mask: list[int]


class ChatEncoder:
    """A tokenizer with its template, as MiniMind's data set uses it.

    Args:
        tokenizer: with a chat template.
        max_length: tokens kept of a row; the rest is cut off at the end.
        empty_think_ratio: share of pairs whose empty `<think>` block stays. MiniMind-3's template writes such a block
            into every answer, and its data set drops most of them at random; here the draw is made from the row
            number, so it is the same in every run, and both halves share it. 1 keeps all.

    Raises:
        DataError: no chat template, or one in which the assistant's turns cannot be told.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_length: int, empty_think_ratio: float = 1.0) -> None:
        if not tokenizer.chat_template:
            raise DataError(
                f"{tokenizer.name_or_path}: the tokenizer has no chat template; give one with --tokenizer_path"
            )
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.empty_think_ratio = empty_think_ratio
        start, end = self._markers()
        self.start, self.end = self._ids(start), self._ids(end)
        if not self.start or not self.end:
            raise DataError(
                f"{tokenizer.name_or_path}: the chat template does not mark where an assistant turn starts "
                f"({start!r}) and ends ({end!r}); use a template of the ChatML kind"
            )

    def encode(self, messages: list[dict[str, Any]], row_number: int) -> TokenizedRow:
        """Tokens and mask of a conversation, cut at `max_length`."""
        text = self._render(messages)
        if EMPTY_THINK in text and _draw(row_number) >= self.empty_think_ratio:
            text = text.replace(EMPTY_THINK, "")
        tokens = self._ids(text)[: self.max_length]
        return TokenizedRow(tokens=tokens, mask=self.mask(tokens))

    def mask(self, tokens: list[int]) -> list[int]:
        """1 for each token after a start marker up to and with the next end marker (or the row's end)."""
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
        # The template has written what special tokens there are; the tokenizer would put a second <bos> in front.
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def _markers(self) -> tuple[str, str]:
        user, answer = {"role": "user", "content": "Q"}, {"role": "assistant", "content": "ANSWER"}
        try:
            once, twice = self._render([user, answer]), self._render([user, answer, user, answer])
            opened = self._render([user], add_generation_prompt=True).removeprefix(self._render([user]))
        except Exception as error:
            # Templates are programs, and may raise anything.
            raise DataError(
                f"{self.tokenizer.name_or_path}: the chat template cannot render a conversation ({error})"
            ) from error
        start, end = f"{self.tokenizer.bos_token}assistant\n", f"{self.tokenizer.eos_token}\n"
        if start in once and once.endswith(end):
            return start, end
        if opened not in twice.partition("ANSWER")[0].rpartition("Q")[2]:
            return "", ""  # what opens a turn for generation is not what opens it in a conversation
        after_once, after_first = once.partition("ANSWER")[2], twice.partition("ANSWER")[2]
        common = 0
        while common < min(len(after_once), len(after_first)) and after_once[common] == after_first[common]:
            common += 1
        return opened, after_once[:common]


def _find(tokens: list[int], wanted: list[int], start: int) -> int | None:
    """First position at or after `start` where `wanted` lies in `tokens`."""
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
    """A number in [0, 1) that depends on the row's number alone."""
    digest = hashlib.sha256(f"empty-think:{row_number}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
