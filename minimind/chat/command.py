"""The chatting script.

argv -> SOURCE, --compare -> speakers -> --prompt once, or lines of the input until it ends
"""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from transformers.utils import logging as transformers_logging

from minimind.chat.conversation import Conversation, thinking_options
from minimind.chat.speaker import Speaker, open_model
from minimind.chat.terminal import NEW, QUIT, Terminal
from minimind.config.fields import flag
from minimind.conversion.flags import ComputeFlags, read_flags
from minimind.errors import ConfigError, one_line_errors
from minimind.generation.decoding import Decoding


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChatFlags:
    """Flags of the chatting script."""

    prompt: str | None = flag(None, "one message: the answer is printed and the script ends")
    compare: str | None = flag(None, "a second model, in any form that SOURCE can have, which gets the same messages")
    system: str | None = flag(None, "the system message")
    thinking: bool | None = flag(
        None, "1, 0: the model thinks before it answers, or not; without this flag as the chat template says"
    )
    raw: bool = flag(False, "1: the text of a message is continued, without chat template and history; for pretraining")
    greedy: bool = flag(False, "1: the most likely token is always taken; the same as --temperature 0")
    temperature: float = flag(0.85, "tokens are sampled from the logits divided by it", low=0)
    top_p: float = flag(0.95, "only the most likely tokens, whose probabilities add up to this, are sampled", above=0)
    top_k: int | None = flag(None, "only this many of the most likely tokens are sampled", low=0)
    repetition_penalty: float = flag(1.0, "logits of tokens that were there before are divided by it", above=0)
    seed: int = flag(42, "seed of the samples: the same seed and messages give the same answers", low=0)
    max_new_tokens: int = flag(512, "an answer is cut after so many tokens", low=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChatConfig:
    """The sections of the chatting script."""

    script: ClassVar[str] = "launch/chat.py"
    description: ClassVar[str] = "Talk with trained weights in the terminal."

    chat: ChatFlags = dataclasses.field(default_factory=ChatFlags)
    compute: ComputeFlags = dataclasses.field(default_factory=ComputeFlags)


def main(argv: Sequence[str] | None = None) -> None:
    """Chat. An error of the user is printed in one line, and the exit status is 1."""
    transformers_logging.disable_progress_bar()
    with one_line_errors():
        chat(sys.argv[1:] if argv is None else argv)


def chat(argv: Sequence[str]) -> None:
    """Answer --prompt, or the lines of the input.

    Raises:
        MiniMindError: flags are wrong, or a model cannot be used.
    """
    flags = read_flags(ChatConfig, argv)
    own = flags.config.chat
    decoding = decoding_of(own)
    names = [str(flags.source), *([own.compare] if own.compare else [])]
    speakers = [_speaker(name, flags.config, flags.model, decoding) for name in names]
    terminal = Terminal(speakers, sys.stdout)
    if own.prompt is not None:
        terminal.say(own.prompt, bare=True)
        return
    typed = sys.stdin.isatty()
    if typed:
        print(f"{' and '.join(names)}: type a message. {NEW} forgets the conversation, {QUIT[0]} or Ctrl-D ends it.\n")
    terminal.converse(_reader(typed), echo=not typed)


def decoding_of(own: ChatFlags) -> Decoding:
    """How the flags decode.

    Raises:
        ConfigError: --top_p is above 1.
    """
    if own.top_p > 1:
        raise ConfigError(f"--top_p {own.top_p:g} is above 1; it is a sum of probabilities")
    return Decoding(
        max_new_tokens=own.max_new_tokens,
        temperature=0.0 if own.greedy else own.temperature,
        top_p=own.top_p,
        top_k=own.top_k,
        repetition_penalty=own.repetition_penalty,
    )


def _speaker(name: str, config: ChatConfig, given: Mapping[str, Any], decoding: Decoding) -> Speaker:
    own = config.chat
    trained, model, tokenizer = open_model(Path(name), given, config.compute)
    if own.prompt is None:
        step = "" if trained.step is None else f", step {trained.step}"
        print(f"{name}: {trained.weights.origin} ({trained.kind}{step})", file=sys.stderr)

    def conversation(tokenizer: Any, room: int) -> Conversation:
        options = {} if own.thinking is None else thinking_options(tokenizer.chat_template or "", own.thinking)
        return Conversation(tokenizer, room, system=own.system, options=options, raw=own.raw, say=print)

    return Speaker(name, model, tokenizer, decoding, own.seed, conversation)


def _reader(typed: bool) -> Callable[[], str]:
    if typed:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401 - input() then has a history, and keys that move in the line
        return lambda: input("> ")
    # A pipe may have any bytes; those that are no text must not end the conversation.
    if hasattr(sys.stdin, "reconfigure"):
        sys.stdin.reconfigure(errors="replace")

    def read() -> str:
        if not (line := sys.stdin.readline()):
            raise EOFError
        return line

    return read
