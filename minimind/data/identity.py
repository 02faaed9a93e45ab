"""What makes two pairs equal: hashes of the prompt and of both answers, as messages.

    PreferenceRow -> identity_of -> (prompt, chosen, rejected), 64 bits each -> PairTable.identities
    AnswerRow -> identity_of_answer -> (prompt, answer, label)
    ConversationRow -> identity_of_conversation -> (prompt, the rest, 0)
    TextRow -> identity_of_text -> (text, text, number of the piece)

The hashes depend on neither tokenizer nor length limit, so pairs of different files can be compared. What
the template does not read, such as a score in a message, is no difference.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from minimind.data.messages import Message
from minimind.data.rows import AnswerRow, CheckedRow, ConversationRow, PreferenceRow, TextRow

# Values of other types than JSON's come from typed columns; their text tells them apart.
_JSON = json.JSONEncoder(ensure_ascii=False, sort_keys=True, default=repr)


def shared_messages(row: PreferenceRow, words: frozenset[str]) -> int:
    """Number of messages that both halves share before the first one that differs: the prompt.

    Args:
        words: all words of the template's source. Keys of messages that are not among them are no difference.
    """
    shared = 0
    for one, other in zip(row.chosen, row.rejected, strict=False):
        if _read(one, words) != _read(other, words):
            break
        shared += 1
    return shared


def identity_of(row: PreferenceRow, words: frozenset[str]) -> tuple[int, int, int]:
    """Hashes of the prompt, of the chosen and of the rejected answer.

    The prompt is what both halves share, with the row's tools and variables for the template; an answer is the rest of
    its half. Equal hashes mean equal contents: among a million pairs two others meet with a probability of 1e-7.

    Args:
        words: see `shared_messages`.
    """
    shared = shared_messages(row, words)
    prompt = _prompt_hash(row.chosen[:shared], row, words)
    return prompt, _answer_hash(row.chosen[shared:], words), _answer_hash(row.rejected[shared:], words)


def identity_of_answer(row: AnswerRow, words: frozenset[str]) -> tuple[int, int, int]:
    """Hashes of the prompt and of the answer, which are those that a pair of it would have, and the label, 1 or 0.

    Args:
        words: see `shared_messages`.
    """
    return _prompt_hash(row.prompt, row, words), _answer_hash(row.messages[-1:], words), int(row.label)


def identity_of_conversation(row: ConversationRow, words: frozenset[str]) -> tuple[int, int, int]:
    """Hashes of what comes before the first assistant turn, and of the rest; the third value is 0.

    Args:
        words: see `shared_messages`.
    """
    roles = [message["role"] for message in row.messages]
    first = roles.index("assistant")
    return _prompt_hash(row.messages[:first], row, words), _answer_hash(row.messages[first:], words), 0


def identity_of_text(row: TextRow) -> tuple[int, int, int]:
    """Twice the hash of the text, and the number of its first piece; the others of a long text have their own."""
    text = _hash(row.text)
    return text, text, 0


def _prompt_hash(prompt: list[Message], row: CheckedRow, words: frozenset[str]) -> int:
    kwargs = {name: value for name, value in row.template_kwargs.items() if name in words}
    return _hash([[_read(message, words) for message in prompt], row.tools, kwargs])


def _answer_hash(answer: list[Message], words: frozenset[str]) -> int:
    return _hash([_read(message, words) for message in answer])


def _read(message: Message, words: frozenset[str]) -> Message:
    """What of a message a template can read."""
    return {key: value for key, value in message.items() if key in words or key in ("role", "content")}


def _hash(value: Any) -> int:
    text = _JSON.encode(value)
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")
