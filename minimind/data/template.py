"""Renders conversations with a tokenizer's chat template.

    messages, tools, arguments -> ChatTemplate.render -> text
                               -> ChatTemplate.render_generation -> text, spans inside {% generation %} blocks

A chat template is a program from a file. It may raise any exception, and each is reported as a `RowError`.
"""

from __future__ import annotations

import dataclasses
import functools
import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from minimind.data.compiled_template import direct_program, takes
from minimind.data.sources import RowError
from minimind.errors import DataError

Messages = Sequence[Mapping[str, Any]]

_COMMENT = re.compile(r"\{#.*?#\}", re.DOTALL)
# Characters of the renderings that are kept: for the other half of a pair, which has the same prompt and is the same
# once placeholders stand for the answers, and for conversations that were foreseen.
_RENDERED_KEPT = 2**23
_GENERATION_BLOCK = re.compile(r"\{%-?\s*generation\s*-?%\}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TemplateInput:
    """What a template receives besides the messages.

    Attributes:
        tools: JSON schemas of the tools that the model may call; None for none.
        arguments: further variables of the template, e.g. enable_thinking.
    """

    tools: Sequence[Any] | None = None
    arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)


PLAIN = TemplateInput()


class ChatTemplate:
    """The chat template of a tokenizer.

    Args:
        tokenizer: must have a chat template.

    Raises:
        DataError: the tokenizer has no chat template.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        if not tokenizer.chat_template:
            raise DataError(
                f"{tokenizer.name_or_path}: the tokenizer has no chat template; use a tokenizer that has one "
                "(--tokenizer_path), or give a template (--chat_template)"
            )
        self.tokenizer = tokenizer
        self._is_common = _is_common(tokenizer)
        self._rendered: dict[Any, str] = {}
        self._size = 0

    def render(self, messages: Messages, given: TemplateInput = PLAIN, *, generation_prompt: bool = False) -> str:
        """The text of a conversation.

        Args:
            generation_prompt: append what the template writes before an answer that is to be generated.

        Raises:
            RowError: the template raised an exception.
        """
        key = _key(messages, given, generation_prompt)
        if key is not None and (known := self._rendered.get(key)) is not None:
            return known
        try:
            if key is not None and messages and self._is_common:
                text = self._render_texts(messages, given, generation_prompt)
            else:
                text = self.tokenizer.apply_chat_template(
                    list(messages),
                    tools=given.tools,
                    tokenize=False,
                    **{**given.arguments, "add_generation_prompt": generation_prompt},
                )
        except Exception as error:
            raise _rejection(error) from error
        if key is not None:
            if self._size > _RENDERED_KEPT:
                self._forget()
            self._rendered[key] = text
            self._size += len(text)
        return text

    def _render_texts(self, messages: Messages, given: TemplateInput, generation_prompt: bool) -> str:
        """What `apply_chat_template` gives for messages of texts alone, in which it has nothing to bring into form."""
        source, variables = self._source(given), self.tokenizer.special_tokens_map

        def whole() -> str:
            texts, _ = render_jinja_template(
                conversations=[list(messages)],
                chat_template=source,
                add_generation_prompt=generation_prompt,
                **variables,
            )
            text: str = texts[0]
            return text

        copies = [dict(message) for message in messages]
        if not takes(copies):
            return whole()
        return direct_program(source, tuple(variables.items())).text(copies, generation_prompt, whole)

    def foresee(self, conversations: Iterable[Messages], given: TemplateInput) -> Iterator[str | None]:
        """Yield the text of each conversation, which `render` will then know; None if it is not kept, or is rejected.

        Other conversations are forgotten.
        """
        self._forget()
        for messages in conversations:
            try:
                yield None if _key(messages, given, False) is None else self.render(messages, given)
            except RowError:
                yield None

    def _forget(self) -> None:
        self._rendered.clear()
        self._size = 0

    def marks_generation(self, given: TemplateInput = PLAIN) -> bool:
        """Whether the template marks the assistant's text itself, by `{% generation %}` blocks."""
        return _has_generation_block(self.source(given))

    def render_generation(self, messages: Messages, given: TemplateInput = PLAIN) -> tuple[str, list[tuple[int, int]]]:
        """The text of a conversation, and (start, end) of the text that each `{% generation %}` block wrote.

        Raises:
            RowError: the template raised an exception.
        """
        # As in `apply_chat_template`: the row's arguments replace special tokens of the same name.
        variables = {**self.tokenizer.special_tokens_map, **given.arguments}
        try:
            texts, spans = render_jinja_template(
                # As in `apply_chat_template`, which does not hand None to a template: it would be written as a word.
                conversations=[[{**one, "content": ""} if one.get("content") is None else one for one in messages]],
                tools=given.tools,
                chat_template=self.source(given),
                return_assistant_tokens_mask=True,
                **variables,
            )
        except Exception as error:
            raise _rejection(error) from error
        return texts[0], [(start, end) for start, end in spans[0]]

    def source(self, given: TemplateInput = PLAIN) -> str:
        """The template that renders a conversation: a tokenizer may have one for conversations with tools.

        Raises:
            RowError: the tokenizer has several, and none for this case.
        """
        try:
            return self._source(given)
        except ValueError as error:
            raise _rejection(error) from error

    def _source(self, given: TemplateInput) -> str:
        return self.tokenizer.get_chat_template(tools=given.tools)


@functools.lru_cache(maxsize=8)
def _has_generation_block(source: str) -> bool:
    return _GENERATION_BLOCK.search(_COMMENT.sub("", source)) is not None


def _is_common(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a tokenizer renders as all do: its class may do more."""
    own = getattr(tokenizer.apply_chat_template, "__func__", None)
    return own is PreTrainedTokenizerBase.apply_chat_template


def _key(messages: Messages, given: TemplateInput, generation_prompt: bool) -> Any:
    """What a rendering depends on; None unless the messages are texts alone: equal values of other types may differ
    in writing.
    """
    if given.tools or given.arguments:
        return None
    items = tuple([tuple(message.items()) for message in messages])
    for message in items:
        for _, value in message:
            if type(value) is not str:
                return None
    return items, generation_prompt


def _rejection(error: Exception) -> RowError:
    return RowError(f"the chat template rejects the row: {textwrap.shorten(str(error), 200)}")
