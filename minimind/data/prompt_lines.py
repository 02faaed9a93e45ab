"""Prompts as the lines of a file give them, without a tokenizer: JSON objects or plain text.

a.jsonl -> one object a line: a prompt or messages, perhaps with an answer -> WrittenPrompt
a.txt   -> one prompt a line                                               -> WrittenPrompt
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from minimind.data.sources import RowError, parse_json
from minimind.errors import DataError

# Columns with the turns, or with the text of a prompt; the first that a row has.
_PROMPT = ("messages", "conversations", "prompt", "text", "chosen")
# Columns with the answer.
_ANSWER = ("answer", "chosen", "response", "completion")
_JSON = (".jsonl", ".json", ".ndjson")


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
        if path.suffix.lower() in _JSON:
            yield _of_row(line, place)
        else:
            yield WrittenPrompt(turns=[_user(line.strip())], answer="", place=place)


def _of_row(line: str, place: str) -> WrittenPrompt:
    try:
        row = parse_json(line.encode())
    except (RowError, RecursionError) as error:
        raise DataError(f"--sample_prompts {place}: {error}") from error
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
    if column == "chosen" and isinstance(row[column], str):
        raise DataError(f"--sample_prompts {place}: 'chosen' is an answer, and no column has the prompt")
    found = next((name for name in _ANSWER if name != column and row.get(name) not in (None, "", [])), None)
    answer = "" if found is None else _text(row[found])
    if answer is None:
        raise DataError(f"--sample_prompts {place}: {found!r} is neither a text nor messages with a content")
    if turns[-1]["role"] == "assistant":
        answer, turns = turns[-1]["content"], turns[:-1]
    if not turns:
        raise DataError(f"--sample_prompts {place}: '{column}' has an answer and no prompt")
    return WrittenPrompt(turns=turns, answer=answer, place=place)


def _text(value: Any) -> str | None:
    """An answer: a text, a number as it is written, or the last of its messages; None for anything else."""
    last = value[-1] if isinstance(value, list) and value else value
    # A message that only calls tools has no content.
    found = last.get("content") or "" if isinstance(last, dict) else last
    if isinstance(found, int | float) and not isinstance(found, bool):
        return str(found)
    return found if isinstance(found, str) else None


def _user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}
