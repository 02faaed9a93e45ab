"""Prompts of a file, for --sample_prompts.

    a.jsonl -> one object a line: a prompt or messages, perhaps with an answer -> SamplePrompt
    a.txt   -> one prompt a line                                               -> SamplePrompt

A prompt is rendered by the chat template as a training row is, up to where the answer begins. Special tokens that are
written in it stay text. Where rows are texts, a prompt is the beginning of one.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from minimind.data.control_tokens import ControlTokens
from minimind.data.encoding import EncodingOptions
from minimind.data.sources import RowError
from minimind.data.template import ChatTemplate, TemplateInput
from minimind.data.text_encoder import TextEncoder
from minimind.errors import DataError, MiniMindError
from minimind.training.samples import SamplePrompt

# Columns with the turns, or with the text of a prompt; the first that a row has.
_PROMPT = ("messages", "conversations", "prompt", "text", "chosen")
# Columns with the answer.
_ANSWER = ("answer", "chosen", "response", "completion")
_JSON = (".jsonl", ".json", ".ndjson")
_Encode = Callable[[Sequence[Mapping[str, str]]], Sequence[int]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class WrittenPrompt:
    """A prompt as it is written.

    Attributes:
        turns: messages; the text alone where rows are texts.
        answer: in the file; empty if there is none.
        place: "prompts.jsonl, line 3".
    """

    turns: Sequence[Mapping[str, str]]
    answer: str
    place: str


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


def written_prompts(path: Path) -> Iterator[WrittenPrompt]:
    """The prompts of a file as they are written; blank lines are none.

    Raises:
        DataError: the file cannot be read, or a line is no prompt.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"--sample_prompts {path}: cannot be read ({error})") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        place = f"{path}, line {number}"
        if path.suffix in _JSON:
            yield _of_row(line, place)
        else:
            yield WrittenPrompt(turns=[_user(line.strip())], answer="", place=place)


def _of_row(line: str, place: str) -> WrittenPrompt:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise DataError(f"--sample_prompts {place}: no JSON ({error})") from error
    column = next((name for name in _PROMPT if isinstance(row, dict) and row.get(name)), None)
    if column is None:
        raise DataError(f"--sample_prompts {place}: an object with 'prompt' or 'messages' is expected")
    turns = [_user(row[column])] if isinstance(row[column], str) else row[column]
    well_formed = isinstance(turns, list) and all(
        isinstance(turn, dict) and isinstance(turn.get("role"), str) and isinstance(turn.get("content"), str)
        for turn in turns
    )
    if not well_formed:
        raise DataError(f"--sample_prompts {place}: '{column}' is neither a text nor messages with role and content")
    answer = next((_text(row[name]) for name in _ANSWER if name != column and row.get(name)), "")
    if turns[-1]["role"] == "assistant":
        answer, turns = turns[-1]["content"], turns[:-1]
    if not turns:
        raise DataError(f"--sample_prompts {place}: '{column}' has an answer and no prompt")
    return WrittenPrompt(turns=turns, answer=answer, place=place)


def _text(value: Any) -> str:
    """An answer: a text, or the last of its messages."""
    last = value[-1] if isinstance(value, list) and value else value
    found = last.get("content") if isinstance(last, dict) else last
    return found if isinstance(found, str) else ""


def _user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


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
