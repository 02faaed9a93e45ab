"""Shapes whose answers are texts: TRL's standard format, Alpaca's, and HH-RLHF's transcripts.

A text prompt becomes a user turn, a text answer an assistant turn of the chat template.
"""

from __future__ import annotations

from typing import Any

from minimind.data.messages import parsed_list
from minimind.data.rows import PreferenceRow
from minimind.data.shapes.halves import answer, answer_pair, check_listed_answers, half_columns, pair, text_pair
from minimind.data.shapes.options import ShapeOptions
from minimind.data.shapes.shape import CONVERSATIONS, HALVES, Row, RowShape, given_columns
from minimind.data.shapes.transcripts import conversation_of_transcript, is_transcript
from minimind.data.shapes.unpaired import is_labelled
from minimind.data.sources import RowError

CHOSEN, REJECTED = (tuple(names) for names in zip(*HALVES, strict=True))
# Columns that may have a prompt as a text.
_PROMPTS = ("prompt", "question", "query", "input")
_NO_PROMPT = (
    "and no column has their prompt; where a common beginning of both would end is not known: give the prompt in a "
    "column 'prompt', or give messages"
)


def _fits_trl(row: Row, given: frozenset[str]) -> bool:
    # `input` is a prompt, except beside Alpaca's `instruction`.
    prompts = set(_PROMPTS) - ({"input"} if "instruction" in given else set())
    return isinstance(_first(row, CHOSEN), str) and bool(prompts & given) and CONVERSATIONS.isdisjoint(given)


def _first(row: Row, columns: tuple[str, ...]) -> Any:
    """The value of the first of some columns that a row has."""
    return next((row[column] for column in columns if row.get(column) is not None), None)


def _convert_trl(row: Row, options: ShapeOptions) -> list[PreferenceRow]:
    names = half_columns(row)
    halves = {half: row[name] for half, name in zip(("chosen", "rejected"), names, strict=True)}
    place = _prompt_column(row, options)
    if isinstance(halves["chosen"], str) and place is None:
        raise RowError(f"'chosen' and 'rejected' are texts, {_NO_PROMPT}")
    if place is not None and isinstance(halves["chosen"], str):
        return [answer_pair(row, place=place, **halves, read=names)]
    halves = {half: answer(half, value) for half, value in halves.items()}
    return [pair(row, **halves, read=names, place=place or "prompt")]


def _prompt_column(row: Row, options: ShapeOptions) -> str | None:
    given = [name for name in _PROMPTS if name in given_columns(row)]
    if len(given) > 1 and row[given[0]] != row[given[1]] and options.data_format != "trl":
        raise RowError(
            f"{given[0]!r} and {given[1]!r} may both be the prompt; rename the column that is not, or give "
            f"--data_format trl, which reads {given[0]!r}"
        )
    return given[0] if given else None


TRL = RowShape(
    title="TRL's texts",
    needs=((*_PROMPTS, *CHOSEN), CHOSEN, REJECTED),
    fits=_fits_trl,
    convert=_convert_trl,
    note="prompt and answers become a user turn and an assistant turn of the chat template",
)


def _fits_alpaca(row: Row, given: frozenset[str]) -> bool:
    if is_labelled(given) and isinstance(row.get("output"), str | dict):
        return False  # one answer, not a list of two
    return isinstance(row["instruction"], str) and (CONVERSATIONS | {"completions"}).isdisjoint(given)


def _convert_alpaca(row: Row, options: ShapeOptions) -> list[PreferenceRow]:
    instruction, more, output = row.get("instruction"), row.get("input") or "", row.get("output")
    for name, value in (("instruction", instruction), ("input", more)):
        if not isinstance(value, str):
            raise RowError(f"{name!r} is not a text")
    has_halves = not given_columns(row).isdisjoint((*CHOSEN, *REJECTED))
    if not has_halves:
        output = parsed_list("'output'", output)
    if isinstance(output, list) and has_halves:
        raise RowError("both 'output' and other columns have a better and a worse answer; remove one of them")
    if isinstance(output, list) and len(output) != 2:
        raise RowError(f"'output' has not two answers, [better, worse], but {len(output)}")
    if isinstance(output, list):
        check_listed_answers("output", output)
    if not isinstance(output, list) and not has_halves:
        raise RowError("'output' is one answer, not two, [better, worse], and 'chosen' and 'rejected' are not there")
    read = ("output",) if isinstance(output, list) else half_columns(row)
    chosen, rejected = output if isinstance(output, list) else (row[name] for name in read)
    question = f"{instruction}\n{more}" if more else instruction
    return [
        text_pair(row, place="instruction", question=question, chosen=chosen, rejected=rejected, read={"input", *read})
    ]


ALPACA = RowShape(
    title="Alpaca",
    needs=(("instruction",), ("output", *CHOSEN), ("output", *REJECTED)),
    fits=_fits_alpaca,
    convert=_convert_alpaca,
)


def _fits_hh(row: Row, given: frozenset[str]) -> bool:
    return isinstance(row["chosen"], str) and given.isdisjoint({*_PROMPTS, "instruction", *CONVERSATIONS})


def _convert_hh(row: Row, options: ShapeOptions) -> list[PreferenceRow]:
    if isinstance(row.get("prompt"), str) and is_transcript(row["prompt"]):
        return _convert_trl(row, options)
    chosen, rejected = row["chosen"], row["rejected"]
    if not all(isinstance(text, str) and is_transcript(text) for text in (chosen, rejected)):
        raise RowError(f"'chosen' and 'rejected' are no transcripts, which begin with 'Human:', {_NO_PROMPT}")
    return [
        pair(
            row,
            chosen=conversation_of_transcript("chosen", chosen),
            rejected=conversation_of_transcript("rejected", rejected),
        )
    ]


HH = RowShape(
    title="HH-RLHF",
    needs=(("chosen",), ("rejected",)),
    fits=_fits_hh,
    convert=_convert_hh,
    note="transcripts, split at each 'Human:' and 'Assistant:' that begins a paragraph",
)
