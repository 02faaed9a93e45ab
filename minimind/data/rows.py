"""Checked rows: two conversations, one with a label, or one alone, in one common form, whatever shape the file has.

    messages of both halves (shapes/), columns (columns.py) -> checked_row          -> PreferenceRow -> template.py
    messages that end with a labelled answer, columns       -> checked_answer       -> AnswerRow
    messages of a conversation, columns                     -> checked_conversation -> ConversationRow

An invalid row raises `RowError`; whether it stops the run is decided later, by `--on_bad_row`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from minimind.data.columns import NO_SCORES, Columns
from minimind.data.messages import Message, has_developer, listed, read_messages
from minimind.data.sources import RowError


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreferenceRow:
    """Two conversations with equal messages before the first assistant turn that differs.

    Attributes:
        chosen, rejected: messages as the chat template takes them, from the system message on.
        tools: descriptions of functions for the chat template; None if there are none.
        template_kwargs: further variables of the chat template for this row.
        unused: columns of the row that have a value and are not used.
        has_developer: messages of the role `developer` were read as system messages.
        shape: name of the row's shape, a key of `SHAPES`.
        scores: of the chosen and of the rejected answer; NaN if not given.
    """

    chosen: list[Message]
    rejected: list[Message]
    tools: list[Any] | None = None
    template_kwargs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    unused: tuple[str, ...] = ()
    has_developer: bool = False
    shape: str = ""
    scores: tuple[float, float] = NO_SCORES

    @property
    def conversations(self) -> Mapping[str, list[Message]]:
        """What the chat template renders, by the name that messages for people use."""
        return {"chosen": self.chosen, "rejected": self.rejected}


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnswerRow:
    """A conversation whose last message is an answer with a label: an unpaired preference.

    Attributes:
        messages: from the system message on; the last one is the assistant's, and the ones before it are its prompt.
        label: the answer is desirable.
        tools, template_kwargs, unused, has_developer, shape: as in `PreferenceRow`.
    """

    messages: list[Message]
    label: bool
    tools: list[Any] | None = None
    template_kwargs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    unused: tuple[str, ...] = ()
    has_developer: bool = False
    shape: str = ""

    @property
    def prompt(self) -> list[Message]:
        """The messages before the answer."""
        return self.messages[:-1]

    @property
    def conversations(self) -> Mapping[str, list[Message]]:
        """As `PreferenceRow.conversations`."""
        return {"messages": self.messages}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConversationRow:
    """A conversation whose assistant's turns are all learned, for supervised fine-tuning.

    Attributes:
        messages: from the system message on.
        tools, template_kwargs, unused, has_developer, shape: as in `PreferenceRow`.
    """

    messages: list[Message]
    tools: list[Any] | None = None
    template_kwargs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    unused: tuple[str, ...] = ()
    has_developer: bool = False
    shape: str = ""

    @property
    def conversations(self) -> Mapping[str, list[Message]]:
        """As `PreferenceRow.conversations`."""
        return {"messages": self.messages}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextRow:
    """A text, for pretraining.

    Attributes:
        text: what is learned.
        unused, shape: as in `PreferenceRow`.
    """

    text: str
    unused: tuple[str, ...] = ()
    shape: str = ""
    # What other rows have for their chat template.
    tools: ClassVar[None] = None
    template_kwargs: ClassVar[Mapping[str, Any]] = {}
    has_developer: ClassVar[bool] = False
    conversations: ClassVar[Mapping[str, list[Message]]] = {}


# What a row of a file gives.
CheckedRow = PreferenceRow | AnswerRow | ConversationRow | TextRow


@dataclasses.dataclass(frozen=True, kw_only=True)
class BadRow:
    """A row that cannot be trained on.

    Attributes:
        line: line number in the file, from 1.
        reason: the problem.
        tokenized: True if the row is tokenised all the same: only the difference between its halves does not reach the
            tokens that count. `--on_bad_row keep` keeps such rows.
    """

    line: int
    reason: str
    tokenized: bool


def checked_row(*, chosen: Any, rejected: Any, columns: Columns | None = None) -> PreferenceRow:
    """Check two conversations and make a row of them.

    Args:
        chosen, rejected: lists of messages, if the row is valid.
        columns: the other columns of the row; None if it has none.

    Raises:
        RowError: the reason, without file and line.
    """
    columns = columns or Columns()
    halves = {half: read_messages(half, value) for half, value in (("chosen", chosen), ("rejected", rejected))}
    for half, messages in halves.items():
        if not any(message["role"] == "assistant" for message in messages):
            raise RowError(f"{half!r} has no assistant turn")
    completed = {half: columns.complete(half, messages) for half, messages in halves.items()}
    for half, messages in completed.items():
        if columns.unused and not any(message["role"] == "user" for message in messages):
            raise RowError(
                f"{half!r} has no user turn, and nothing reads the columns {listed(columns.unused)}; if one of them is "
                "the prompt, rename it to 'prompt'"
            )
    # Messages are counted as the file has them, without a prompt that was put in front.
    _check_prompts(completed, {half: len(completed[half]) - len(halves[half]) for half in halves})
    return PreferenceRow(
        chosen=completed["chosen"],
        rejected=completed["rejected"],
        tools=columns.tools,
        template_kwargs=columns.template_kwargs,
        unused=columns.unused,
        scores=columns.scores,
        has_developer=columns.has_developer or has_developer(chosen) or has_developer(rejected),
    )


def checked_answer(*, column: str, messages: Any, label: bool, columns: Columns) -> AnswerRow:
    """Check a conversation whose last message is the labelled answer.

    Args:
        column: where the messages are from, for error messages.
        messages: a list of messages, if the row is valid: a whole conversation, or the answer behind the prompt of
            `columns`.
        columns: the other columns of the row.

    Raises:
        RowError: the reason, without file and line.
    """
    whole = columns.complete(column, read_messages(column, messages))
    roles = [message["role"] for message in whole]
    if roles[-1] != "assistant":
        raise RowError(f"{column!r} ends with a message of the role {roles[-1]}, not with the labelled answer")
    if "user" not in roles:
        raise RowError(f"{column!r} has no user turn; give the prompt in a column 'prompt'")
    prompt = columns.prompt if isinstance(columns.prompt, list) else []
    earlier = sum(message["role"] == "assistant" for message in prompt)
    if columns.prompt is not None and (answers := roles.count("assistant") - earlier) > 1:
        raise RowError(
            f"{column!r} has {answers} assistant turns, and the label is that of one answer; put the earlier ones into "
            f"{columns.place!r}"
        )
    return AnswerRow(
        messages=whole,
        label=label,
        tools=columns.tools,
        template_kwargs=columns.template_kwargs,
        unused=columns.unused,
        has_developer=columns.has_developer or has_developer(messages),
    )


def checked_conversation(*, column: str, messages: Any, columns: Columns) -> ConversationRow:
    """Check a conversation, for supervised fine-tuning.

    Args:
        column: where the messages are from, for error messages.
        messages: a list of messages, if the row is valid: a whole conversation, or the answer behind the prompt of
            `columns`.
        columns: the other columns of the row.

    Raises:
        RowError: the reason, without file and line.
    """
    whole = columns.complete(column, read_messages(column, messages))
    roles = {message["role"] for message in whole}
    if "assistant" not in roles:
        raise RowError(f"{column!r} has no assistant turn, so that there is nothing to learn")
    if "user" not in roles and columns.unused:
        raise RowError(
            f"{column!r} has no user turn, and nothing reads the columns {listed(columns.unused)}; if one of them is "
            "the prompt, rename it to 'prompt'"
        )
    return ConversationRow(
        messages=whole,
        tools=columns.tools,
        template_kwargs=columns.template_kwargs,
        unused=columns.unused,
        has_developer=columns.has_developer or has_developer(messages),
    )


def answers_of(pair: PreferenceRow) -> list[AnswerRow]:
    """The answers of a pair, each with its label: chosen is desirable, rejected is not.

    Raises:
        RowError: the answers go on over several turns.
    """
    for half, messages in pair.conversations.items():
        if messages[:-1] != pair.chosen[:-1] or messages[-1]["role"] != "assistant":
            raise RowError(
                f"{half!r} does not end with the answer in which the two differ, so that it cannot be taken as an "
                "answer with a label"
            )
    return [
        AnswerRow(
            messages=messages,
            label=half == "chosen",
            tools=pair.tools,
            template_kwargs=pair.template_kwargs,
            unused=pair.unused,
            has_developer=pair.has_developer,
            shape=pair.shape,
        )
        for half, messages in pair.conversations.items()
    ]


def _check_prompts(halves: Mapping[str, list[Message]], added: Mapping[str, int]) -> None:
    """Check that the first difference is between two assistant turns: DPO compares answers to the same prompt.

    Whether the chat template reads other keys than the content of a prompt's messages is checked when it renders them.
    """
    chosen, rejected = halves["chosen"], halves["rejected"]
    for index, (one, other) in enumerate(zip(chosen, rejected, strict=False)):
        if one["role"] == other["role"] == "assistant" and one != other:
            return
        if one["role"] == other["role"] and one.get("content") == other.get("content"):
            continue
        raise RowError(
            f"the prompts differ: message {max(0, index - added['chosen'])} of 'chosen' ({one['role']}) and message "
            f"{max(0, index - added['rejected'])} of 'rejected' ({other['role']}) are not equal, and no assistant turn "
            "before them differs"
        )
    if chosen == rejected:
        raise RowError("'chosen' and 'rejected' are the same")
