"""What a table has of a row besides its tokens: hashes, scores and a label.

CheckedRow -> entry_of -> Entry
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from minimind.data.columns import NO_SCORES
from minimind.data.identity import identity_of, identity_of_answer, identity_of_conversation, identity_of_text
from minimind.data.rows import AnswerRow, CheckedRow, ConversationRow, PreferenceRow

# Values in `Chunk.labels` of a pair, of a conversation and of a text; an answer has 1 if it is desirable, else 0.
NO_LABEL, CONVERSATION, TEXT = 2, 3, 4
# What the entries of a table are, for messages.
ITEMS = {0: "answers", 1: "answers", NO_LABEL: "pairs", CONVERSATION: "conversations", TEXT: "texts"}


class Entry(NamedTuple):
    """Three hashes, scores of both halves, and the label."""

    identity: tuple[int, int, int]
    scores: tuple[float, float]
    label: int


def entry_of(row: CheckedRow, words: frozenset[str]) -> Entry:
    """The entry of a row.

    Args:
        words: all words of the chat template's source; see identity.py.
    """
    if isinstance(row, PreferenceRow):
        return Entry(identity_of(row, words), row.scores, NO_LABEL)
    if isinstance(row, AnswerRow):
        return Entry(identity_of_answer(row, words), NO_SCORES, int(row.label))
    if isinstance(row, ConversationRow):
        return Entry(identity_of_conversation(row, words), NO_SCORES, CONVERSATION)
    return Entry(identity_of_text(row), NO_SCORES, TEXT)


def entries_of(row: CheckedRow, words: frozenset[str], pieces: int) -> Iterator[Entry]:
    """The entries of a row: one, or that of each piece of a text that is split. The row is hashed once for all of them,
    since a text of megabytes has thousands."""
    whole = entry_of(row, words)
    yield whole
    for piece in range(1, pieces):
        yield whole._replace(identity=(*whole.identity[:2], piece))
