"""What encoding a conversation means: its options, its result, and the interface of both encoders.

messages, tools, arguments -> ConversationEncoder.encode -> TokenizedRow: token ids, mask of the assistant's tokens
"""

from __future__ import annotations

import abc
import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from minimind.data.left_out import words_of
from minimind.data.template import ChatTemplate, Messages, TemplateInput

EMPTY_THINK = "<think>\n\n</think>\n\n"
# Values of --mask, and that of texts without turns.
TURNS, MINIMIND, TEXT = "turns", "minimind", "text"


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


class RowEncoder(abc.ABC):
    """Encodes rows of any kind."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, options: EncodingOptions) -> None:
        self.tokenizer, self.options = tokenizer, options

    @property
    def words(self) -> frozenset[str]:
        """All words of a template's source: what it may read of a row."""
        return frozenset()

    def foresee(self, conversations: Iterable[tuple[Messages, int]]) -> None:  # noqa: B027 - an encoder need not
        """Do together what takes longer one by one, for conversations that will be encoded; it changes no result.

        Args:
            conversations: messages and row number of each, without tools and arguments of its own.
        """

    @abc.abstractmethod
    def key(self) -> list[Any]:
        """JSON values that tell two encoders with different results for the same tokenizer apart."""


class ConversationEncoder(RowEncoder):
    """Encodes conversations.

    Args:
        tokenizer: must have a chat template.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, options: EncodingOptions) -> None:
        super().__init__(tokenizer, options)
        self.template = ChatTemplate(tokenizer)

    @property
    def words(self) -> frozenset[str]:
        return words_of(self.template)

    def encode(
        self,
        messages: Messages,
        row_number: int,
        tools: Sequence[Any] | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> TokenizedRow:
        """Tokens and mask of a whole conversation; for the arguments see `encode_compared`."""
        return self.encode_compared(messages, row_number, tools, template_kwargs).row

    def encode_compared(
        self,
        messages: Messages,
        row_number: int,
        tools: Sequence[Any] | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
        other: Messages | None = None,
    ) -> ComparedRow:
        """Tokens and mask, compared with MiniMind's rule where the tokenizer's template writes its markers.

        Args:
            row_number: line number of the pair in its file.
            tools: JSON schemas of the tools that the assistant may call.
            template_kwargs: variables of the template for this row.
            other: the other half of the pair, by which the turns may be found faster; it changes no result.

        Raises:
            RowError: the template rejects the conversation, or an assistant's turn is not found.
        """
        return self._encode(messages, row_number, self.given(tools, template_kwargs), template_kwargs or {}, other)

    @abc.abstractmethod
    def _encode(
        self,
        messages: Messages,
        row_number: int,
        given: TemplateInput,
        own: Mapping[str, Any],
        other: Messages | None,
    ) -> ComparedRow:
        """As `encode_compared`.

        Args:
            given: what the template receives besides the messages.
            own: those of its arguments that come from the row, not from the run's settings.
        """

    def given(self, tools: Sequence[Any] | None, template_kwargs: Mapping[str, Any] | None) -> TemplateInput:
        """What the template receives for a row with these tools and arguments."""
        return TemplateInput(tools=tools, arguments={**self.options.template_kwargs, **(template_kwargs or {})})

    def drops_thinks(self, text: str, row_number: int) -> bool:
        """Whether the empty `<think>` blocks are removed from this row's text."""
        return EMPTY_THINK in text and _draw(row_number) >= self.options.empty_think_ratio


def option_values(options: EncodingOptions) -> list[Any]:
    """JSON values of the options that change tokens or masks."""
    kwargs = json.dumps(options.template_kwargs, sort_keys=True)
    return [options.empty_think_ratio, kwargs, options.last_turn_only]


@functools.lru_cache(maxsize=1024)
def _draw(row_number: int) -> float:
    """A pseudo-random number in [0, 1) that depends on the row number only."""
    digest = hashlib.sha256(f"empty-think:{row_number}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
