"""What a table has of each kind of row besides its tokens."""

from __future__ import annotations

import math

from minimind.data.entries import CONVERSATION, ITEMS, NO_LABEL, TEXT, entries_of, entry_of
from minimind.data.rows import AnswerRow, ConversationRow, PreferenceRow, TextRow
from tests.conftest import conversation

HI, OTHER = conversation("Hi", "Yo."), conversation("Hi", "No.")
WORDS = frozenset({"role", "content"})


def test_each_kind_has_a_label_and_three_hashes():
    pair = entry_of(PreferenceRow(chosen=HI, rejected=OTHER, scores=(2.0, 1.0)), WORDS)
    answer = entry_of(AnswerRow(messages=HI, label=True), WORDS)
    alone = entry_of(ConversationRow(messages=HI), WORDS)
    text = list(entries_of(TextRow(text="Hi"), WORDS, 4))[3]
    assert [one.label for one in (pair, answer, alone, text)] == [NO_LABEL, 1, CONVERSATION, TEXT]
    assert pair.scores == (2.0, 1.0)
    assert all(math.isnan(one.scores[0]) for one in (answer, alone, text))
    # The prompt is the same, whatever follows it.
    assert pair.identity[0] == answer.identity[0] == alone.identity[0]
    assert text.identity[2] == 3
    assert entry_of(TextRow(text="Hi"), WORDS).identity != text.identity
    assert {ITEMS[one.label] for one in (pair, answer, alone, text)} == {"pairs", "answers", "conversations", "texts"}
