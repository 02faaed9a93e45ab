"""A conversation: its messages, and the tokens that a model sees of them.

system, user, assistant, user -> chat template -> token ids that fit the model's context
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from transformers import PreTrainedTokenizerBase

from minimind.errors import ConfigError, DataError

# Variables by which chat templates let a model think before it answers: Qwen3's and MiniMind2's, MiniMind-3's, others'.
_THINKING = ("enable_thinking", "open_thinking", "thinking")


def thinking_options(template: str, thinking: bool) -> dict[str, bool]:
    """The variables of a chat template that turn thinking on or off.

    Raises:
        ConfigError: the template has none.
    """
    found = {name: thinking for name in _THINKING if re.search(rf"\b{name}\b", template)}
    if not found:
        names = ", ".join(_THINKING)
        raise ConfigError(f"--thinking {int(thinking)}: the chat template knows no thinking (it reads none of {names})")
    return found


class Conversation:
    """The messages of one conversation with one model.

    Args:
        tokenizer: with a chat template, unless `raw`.
        room: tokens that a prompt may have at most.
        system: the system message; None: none.
        options: variables of the chat template.
        raw: prompts are continued as they are, without a template or history.
        say: called with what the user must know.

    Raises:
        ConfigError: the tokenizer has no chat template.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        room: int,
        *,
        system: str | None = None,
        options: Mapping[str, Any] | None = None,
        raw: bool = False,
        say: Callable[[str], object] = lambda text: None,
    ) -> None:
        if not raw and not tokenizer.chat_template:
            raise ConfigError(
                "the tokenizer has no chat template; give another with --tokenizer_path, or --raw 1, which continues "
                "the text of the prompt"
            )
        self._tokenizer, self._room, self._raw, self._say = tokenizer, room, raw, say
        self._options = dict(options or {})
        self._start = [{"role": "system", "content": system}] if system else []
        self._turns: list[dict[str, str]] = []

    def prompt(self, text: str) -> list[int]:
        """Token ids up to where the answer to `text` begins. The oldest turns are dropped until they fit.

        Raises:
            DataError: the message alone does not fit, or the template refuses it.
        """
        turns = [*self._turns, {"role": "user", "content": text}]
        dropped = 0
        while len(ids := self._ids(turns)) > self._room:
            if len(turns) < 3:
                raise DataError(f"the message has {len(ids)} tokens, and the model has room for {self._room}")
            # A question and its answer.
            turns, dropped = turns[2:], dropped + 1
        if dropped:
            self._say(f"({dropped} of the oldest turns no longer fit into the model's context and are forgotten)")
        self._turns = turns[:-1]
        return ids

    def add(self, text: str, answer: str) -> None:
        """Remember a question and its answer."""
        if not self._raw:
            self._turns += [{"role": "user", "content": text}, {"role": "assistant", "content": answer}]

    def clear(self) -> None:
        """Forget all turns; the system message stays."""
        self._turns = []

    def _ids(self, turns: list[dict[str, str]]) -> list[int]:
        if self._raw:
            # MiniMind's pretrained weights continue a text that begins with this token.
            return self._tokenizer(
                (self._tokenizer.bos_token or "") + turns[-1]["content"], add_special_tokens=False
            ).input_ids
        try:
            text = self._tokenizer.apply_chat_template(
                [*self._start, *turns], tokenize=False, add_generation_prompt=True, **self._options
            )
        except Exception as error:
            # jinja2 raises many types, and templates raise their own.
            raise DataError(f"the chat template cannot render the conversation ({error})") from error
        return self._tokenizer(text, add_special_tokens=False).input_ids
