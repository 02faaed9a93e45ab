"""Shapes of rows for supervised fine-tuning: whole conversations, and prompts with their answers.

row -> messages of a conversation, its tools -> checked_conversation -> ConversationRow

MiniMind writes a row's tools into its system message, as a list or as the JSON text of one, and may write the calls of
a turn as a JSON text.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from minimind.data.columns import read_columns
from minimind.data.messages import Message, parse_json_text, shown
from minimind.data.rows import ConversationRow, checked_conversation
from minimind.data.shapes.options import ShapeOptions
from minimind.data.shapes.shape import HALVES, Row, RowShape, given_columns
from minimind.data.shapes.turns import messages_of_turns
from minimind.data.shapes.unpaired import LABELS, completion
from minimind.data.sources import RowError

# Columns of a whole conversation.
_WHOLE = ("conversations", "messages")
# Columns of the prompt and of its answer.
_PAIRS = (("prompt", "completion"), ("query", "response"), ("question", "answer"))
# Columns of rows that say more than what to learn.
_JUDGED = frozenset({*LABELS, *(name for names in HALVES for name in names), "rejected_response", "rejected_messages"})
# Keys under which a system message has the row's tools.
_TOOLS = ("tools", "functions")


def _fits(row: Row, given: frozenset[str]) -> bool:
    return given.isdisjoint(_JUDGED)


def _check_unjudged(row: Row) -> None:
    """Raises RowError for a row of preferences: which of its answers are good is not for this job to guess."""
    if judged := sorted(_JUDGED & given_columns(row)):
        raise RowError(
            f"the column {judged[0]!r} judges answers; such rows are for launch/train_dpo.py. To learn an answer all "
            "the same, write the conversation into a column 'conversations', and nothing else"
        )


def _convert_conversation(row: Row, options: ShapeOptions) -> list[ConversationRow]:
    _check_unjudged(row)
    columns = [name for name in _WHOLE if name in given_columns(row)]
    if len(columns) > 1:
        raise RowError("both 'conversations' and 'messages' are there; rename the one that is not the conversation")
    turns = row[columns[0]]
    if isinstance(turns, str):
        turns = parse_json_text(repr(columns[0]), turns)
    messages = messages_of_turns(columns[0], turns, options.names)
    if not isinstance(messages, list):
        raise RowError(f"{columns[0]!r} is not a list of messages: {shown(messages)}")
    messages, tools = _without_tools([_with_calls(columns[0], one) for one in messages])
    if tools and row.get("tools") and tools != row["tools"]:
        raise RowError("the column 'tools' and the tools of the system message differ; remove one of them")
    values = {**row, "tools": tools} if tools else row
    return [
        checked_conversation(
            column=columns[0], messages=messages, columns=read_columns(values, own={columns[0]}, place="prompt")
        )
    ]


def _with_calls(column: str, message: Any) -> Any:
    """A message whose tool calls are objects, not the JSON text of them."""
    calls = message.get("tool_calls") if isinstance(message, dict) else None
    if not isinstance(calls, str):
        return message
    parsed = parse_json_text(f"{column!r}: 'tool_calls'", calls) if calls.strip() else None
    return {**message, "tool_calls": parsed}


def _without_tools(messages: list[Any]) -> tuple[list[Message], Any]:
    """The messages without the tools that the system message has, and these tools; None if it has none."""
    first = messages[0] if messages and isinstance(messages[0], dict) else {}
    named = [name for name in _TOOLS if first.get(name)]
    if first.get("role") != "system" or not named:
        return messages, None
    rest: Mapping[str, Any] = {name: value for name, value in first.items() if name not in _TOOLS}
    return [dict(rest), *messages[1:]], first[named[0]]


def _convert_instruction(row: Row, options: ShapeOptions) -> list[ConversationRow]:
    return [_answered(row, "instruction", "output", options)]


def _convert_completion(row: Row, options: ShapeOptions) -> list[ConversationRow]:
    given = given_columns(row)
    found = [names for names in _PAIRS if given.issuperset(names)]
    if len(found) != 1:
        listed = ", ".join(repr(answer) for _, answer in found) or "none of " + ", ".join(repr(a) for _, a in _PAIRS)
        raise RowError(f"a prompt needs one column with its answer; there is {listed}")
    return [_answered(row, *found[0], options)]


def _answered(row: Row, place: str, column: str, options: ShapeOptions) -> ConversationRow:
    _check_unjudged(row)
    messages, columns = completion(row, place, column, options)
    return checked_conversation(column=column, messages=messages, columns=columns)


CONVERSATION_SHAPES: Mapping[str, RowShape] = {
    "conversations": RowShape(title="a conversation", needs=(_WHOLE,), fits=_fits, convert=_convert_conversation),
    "instructions": RowShape(
        title="Alpaca", needs=(("instruction",), ("output",)), fits=_fits, convert=_convert_instruction
    ),
    "completions": RowShape(
        title="a prompt and its answer",
        needs=(tuple(prompt for prompt, _ in _PAIRS), tuple(answer for _, answer in _PAIRS)),
        fits=_fits,
        convert=_convert_completion,
    ),
}
