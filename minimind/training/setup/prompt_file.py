"""Prompts of a file, for --sample_prompts.

    data/prompt_lines.py -> WrittenPrompt -> template, tokens -> SamplePrompt

A prompt is rendered by the chat template as a training row is, up to where the answer begins. Special tokens that are
written in it stay text. Where rows are texts, a prompt is the beginning of one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from minimind.data.control_tokens import ControlTokens
from minimind.data.encoding import EncodingOptions
from minimind.data.prompt_lines import written_prompts
from minimind.data.sources import RowError
from minimind.data.template import ChatTemplate, TemplateInput
from minimind.data.text_encoder import TextEncoder
from minimind.errors import DataError, MiniMindError
from minimind.training.samples import SamplePrompt

_Encode = Callable[[Sequence[Mapping[str, str]]], Sequence[int]]


def read_prompts(
    path: Path,
    tokenizer: PreTrainedTokenizerBase,
    template_kwargs: Mapping[str, Any],
    *,
    of_texts: bool,
    room: int | None,
) -> list[SamplePrompt]:
    """The prompts of a file.

    Args:
        template_kwargs: variables of the chat template.
        of_texts: rows are texts, without turns.
        room: tokens that a prompt may have; None: any number.

    Raises:
        DataError: the file cannot be read, has no prompt, or one that cannot be used; it names the line.
    """
    encode = _text_encoder(tokenizer) if of_texts else _turn_encoder(tokenizer, template_kwargs)
    found = []
    for one in written_prompts(path):
        try:
            ids = encode(one.turns)
        except (RowError, MiniMindError) as error:
            raise DataError(f"--sample_prompts {one.place}: {error}") from error
        if room is not None and len(ids) > room:
            raise DataError(
                f"--sample_prompts {one.place}: the prompt has {len(ids)} tokens, and the model has room for {room} "
                "beside --sample_tokens"
            )
        found.append(
            SamplePrompt(ids=tuple(map(int, ids)), text=_shown(one.turns), expected=one.answer, place=one.place)
        )
    if not found:
        raise DataError(f"--sample_prompts {path}: the file has no prompt")
    return found


def _turn_encoder(tokenizer: PreTrainedTokenizerBase, template_kwargs: Mapping[str, Any]) -> _Encode:
    template, controls = ChatTemplate(tokenizer), ControlTokens(tokenizer)
    given = TemplateInput(arguments=template_kwargs)

    def encode(turns: Sequence[Mapping[str, str]]) -> Sequence[int]:
        shielded = controls.shield(turns, given, {})
        text = template.render(shielded.messages, given, generation_prompt=True)
        return controls.tokenize(text, shielded=shielded.number > 0).ids

    return encode


def _text_encoder(tokenizer: PreTrainedTokenizerBase) -> _Encode:
    encoder = TextEncoder(tokenizer, EncodingOptions())

    def encode(turns: Sequence[Mapping[str, str]]) -> Sequence[int]:
        # Without the token that ends a text.
        return encoder.encode_text(turns[-1]["content"]).tokens[: -len(encoder.end)]

    return encode


def _shown(turns: Sequence[Mapping[str, str]]) -> str:
    """The prompt for people: a single message, or all with their roles."""
    if len(turns) == 1:
        return turns[0]["content"]
    return "\n".join(f"{turn['role']}: {turn['content']}" for turn in turns)
