"""Finds the texts with which a chat template opens and closes an assistant's turn.

    sample conversation with known words -> rendered -> text around the words -> TurnMarkers

Nothing is assumed about the style of the template. Texts are compared in units, so that a marker such as `<|end|>` is
never cut: a unit is a special token of the tokenizer, another text in brackets, or one character.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

from minimind.data.control_tokens import special_tokens
from minimind.data.sources import RowError
from minimind.data.template import ChatTemplate, TemplateInput

# Words of the sample conversation. No template writes them, and no template changes letters and digits.
_WORDS = ("Question0a", "Answer0a", "Question1b", "Answer1b")
_BRACKETED = r"<[^<>\s]+>|\[[^\[\]\s]+\]"
# Opens a block of reasoning. A reasoning block is text of the turn even where the generation prompt opens it, as in
# MiniMind's own rule.
_REASONING = re.compile(r"think|reason", re.IGNORECASE)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TurnMarkers:
    """Texts around an assistant's turn.

    Attributes:
        header: opens a turn, e.g. `<|im_start|>assistant` and a newline; empty if the template writes nothing of its
            own between a question and its answer.
        end: closes a turn that a message follows; may be empty.
        last_end: closes the last turn; may be empty.
        blocks: texts that the template writes between a header and an answer without reasoning, e.g. an empty block.
        prompt_rest: what a generation prompt adds to the header, e.g. `<think>` and a newline.
        tail: everything that the template writes after the last answer.
    """

    header: str
    end: str
    last_end: str
    blocks: frozenset[str] = frozenset({""})
    prompt_rest: str = ""
    tail: str = ""

    def closing(self, after: str, *, is_last: bool) -> str | None:
        """The marker that closes a turn, at the start of the text after its answer; None if that begins otherwise.

        Args:
            is_last: no message follows the turn.
        """
        ends = (self.last_end, self.end) if is_last else (self.end, self.last_end)
        return next((end for end in ends if after.startswith(end)), None)


def find_markers(template: ChatTemplate, given: TemplateInput) -> TurnMarkers:
    """The markers of a template under these arguments.

    Raises:
        RowError: the template cannot render the sample conversation, does not write all of its words in order, or
            writes a generation prompt where none was asked for.
    """
    roles = ("user", "assistant")
    sample = [{"role": roles[i % 2], "content": word} for i, word in enumerate(_WORDS)]
    before, first, between, second, last = _parts(template.render(sample, given), _WORDS)
    _, closed = _parts(template.render(sample[:1], given), _WORDS[:1])
    _, opened = _parts(template.render(sample[:1], given, generation_prompt=True), _WORDS[:1])
    unit = re.compile("|".join([*_alternatives(template), _BRACKETED, r"(?s:.)"]))
    # A template may end a whole conversation with more than the question's own end, so both are compared.
    prompt = unit.findall(opened)[_common(unit.findall(opened), unit.findall(closed)) :]
    header = _header(prompt, (first, second))
    _check_ending(unit, closed, opened, first, between, last)
    end, last_end = _ends(unit, before, between, last, header)
    blocks = frozenset(part.rpartition(header)[2] for part in (first, second)) if header else frozenset({""})
    rest = "".join(prompt).removeprefix(header)
    return TurnMarkers(header=header, end=end, last_end=last_end, blocks=blocks, prompt_rest=rest, tail=last)


def _alternatives(template: ChatTemplate) -> list[str]:
    return [re.escape(token) for token in special_tokens(template.tokenizer)]


def _parts(text: str, words: Sequence[str]) -> list[str]:
    """The text before, between and after the words.

    Raises:
        RowError: a word is missing, occurs twice, or is out of order.
    """
    parts = []
    for word in words:
        if text.count(word) != 1:
            raise RowError("the chat template does not write each message of a sample conversation once")
        part, _, text = text.partition(word)
        parts.append(part)
    return [*parts, text]


def _header(prompt: list[str], before_answers: Sequence[str]) -> str:
    """The generation prompt up to a reasoning block, if the template also writes it before given answers."""
    kept = next((index for index, unit in enumerate(prompt) if len(unit) > 1 and _REASONING.search(unit)), len(prompt))
    header = "".join(prompt[:kept])
    # The prompt may end with more or less white space than the template writes before given answers.
    shortest = len(header.rstrip())
    texts = (header[:length] for length in range(len(header), shortest - 1, -1))
    return next((text for text in texts if all(text in part for part in before_answers)), "")


def _check_ending(unit: re.Pattern[str], closed: str, opened: str, first: str, between: str, last: str) -> None:
    """Check that a conversation does not end with a generation prompt that was not asked for.

    Args:
        closed, opened: text after a lone question, without and with a generation prompt.
        first, between, last: text between question and answer, answer and question, and after the last answer.

    Raises:
        RowError: it does. Where the end of a turn stops and the prompt begins cannot be told then.
    """
    final = unit.findall(last)
    shared = _common(unit.findall(closed)[::-1], final[::-1])
    prompts = closed == opened and first.startswith(closed) and not between.startswith(last)
    if prompts and _has_marker(final[len(final) - shared :]):
        raise RowError("the chat template writes a generation prompt after every conversation")


def _ends(unit: re.Pattern[str], before: str, between: str, last: str, header: str) -> tuple[str, str]:
    """The ends of an earlier and of the last turn.

    Args:
        before: text before the first question.
        between: text between an answer and the next question: the end, then the header of the question.
        last: text after the last answer: the end, then whatever ends a whole conversation.
    """
    middle, final = unit.findall(between), unit.findall(last)
    opener = next(iter(unit.findall(header)), "")
    if len(opener) > 1 and opener in middle:
        # All headers begin alike, as in ChatML.
        end = middle[: middle.index(opener)]
    else:
        # The header of the second question is that of the first one.
        shared = _common(middle[::-1], unit.findall(before)[::-1])
        # A system message may end as an answer does; then the two texts say nothing about where the header begins.
        end = middle[: -shared or None] if shared < len(middle) else middle[: _common(middle, final)]
    both = end[: _common(end, final)]
    if _has_marker(both):
        # Separators that only one of the two has belong to neither.
        return "".join(both), "".join(both)
    if not _has_marker(final):
        return "".join(end), "".join(both)
    stop = next(index for index, text in enumerate(final) if len(text) > 1) + 1
    while stop < len(final) and final[stop].isspace():
        stop += 1
    return "".join(end), "".join(final[:stop])


def _has_marker(units: Sequence[str]) -> bool:
    return any(len(unit) > 1 for unit in units)


def _common(one: Sequence[str], other: Sequence[str]) -> int:
    """Number of leading units that both have."""
    count = 0
    while count < min(len(one), len(other)) and one[count] == other[count]:
        count += 1
    return count
