"""Checked preference rows: two conversations in one common form, whatever shape the file has.

    messages of both halves (shapes.py) -> checked_row -> PreferenceRow -> template.py

A message is `{"role": ..., "content": ...}`. An invalid row raises `RowError`; whether it stops the run is decided
later, by `--on_bad_row`.
"""

from __future__ import annotations

import dataclasses
import reprlib
from typing import Any

from minimind.data.sources import RowError

ROLES = ("system", "user", "assistant", "tool")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreferenceRow:
    """Two conversations with equal messages before the first assistant turn that differs."""

    chosen: list[dict[str, Any]]
    rejected: list[dict[str, Any]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class BadRow:
    """A row that cannot be trained on.

    Attributes:
        line: line number in the file, from 1.
        reason: the problem.
        tokenized: True if the row is valid but truncation leaves no answer; `--on_bad_row keep` keeps such rows.
    """

    line: int
    reason: str
    tokenized: bool


def checked_row(*, chosen: Any, rejected: Any) -> PreferenceRow:
    """Check two conversations and make a row of them.

    Args:
        chosen, rejected: lists of messages, if the row is valid.

    Raises:
        RowError: the reason, without file and line.
    """
    _check_messages("chosen", chosen)
    _check_messages("rejected", rejected)
    _check_prompts(chosen, rejected)
    return PreferenceRow(chosen=chosen, rejected=rejected)


def _check_messages(half: str, messages: Any) -> None:
    if not isinstance(messages, list) or not messages:
        raise RowError(f"{half!r} is not a list of messages")
    for index, message in enumerate(messages):
        if not isinstance(message, dict) or "role" not in message:
            raise RowError(f"{half!r} message {index} is not an object with 'role' and 'content'")
        if message["role"] not in ROLES:
            role = reprlib.repr(message["role"])
            raise RowError(f"{half!r} message {index} has the unknown role {role}; use one of {', '.join(ROLES)}")
        # An assistant turn that only calls tools needs no text.
        calls_tools = message["role"] == "assistant" and message.get("tool_calls")
        content = message.get("content")
        if not isinstance(content, str) and not calls_tools:
            raise RowError(f"{half!r} message {index} has no text in 'content'")
    if not any(message["role"] == "assistant" for message in messages):
        raise RowError(f"{half!r} has no assistant turn")


def _check_prompts(chosen: list[dict[str, Any]], rejected: list[dict[str, Any]]) -> None:
    """Check that the first difference is between two assistant turns: DPO compares answers to the same prompt."""
    for index, (one, other) in enumerate(zip(chosen, rejected, strict=False)):
        if one == other:
            continue
        if one["role"] == other["role"] == "assistant":
            return
        raise RowError(
            f"the prompts differ: message {index} of 'chosen' ({one['role']}) and of 'rejected' ({other['role']}) are "
            "not equal, and no assistant turn before it differs"
        )
    # Without a difference so far, one conversation continues the other, unless they have the same length.
    if len(chosen) == len(rejected):
        raise RowError("'chosen' and 'rejected' are the same")
