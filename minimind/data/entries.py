"""What a table has of a row besides its tokens: hashes, scores and a label.

CheckedRow -> entry_of -> Entry
"""

from __future__ import annotations

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

    def of_piece(self, piece: int) -> Entry:
        """The entry of a piece, from 0, of a text that is split; the first one's is that of the text."""
        return self._replace(identity=(*self.identity[:2], piece)) if piece else self


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
