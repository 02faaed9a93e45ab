"""Tokenises a labelled answer: one row; for KTO also the answer to another prompt, behind this one's prompt.

    AnswerRow -> chosen: prompt | answer
              -> rejected: prompt | answer of a row behind it with another prompt   (mismatched)
                 or one token that nothing is computed of                        (no loss needs it)

A table keeps it as a pair, so that packing, budgets, caches and checks are those of pairs: both rows share the prompt.
KTO estimates its KL term from mismatched rows. They are chosen here, by the order of the file, and not in each batch,
so that neither the seed nor the split of a batch changes a row, and a cache of reference log-probs can hold them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence

from minimind.data.differences import common_prefix
from minimind.data.encoding import ConversationEncoder, TokenizedRow
from minimind.data.left_out import check_rendered
from minimind.data.messages import Message
from minimind.data.pairs import EncodedPair, LengthLimit
from minimind.data.rows import AnswerRow, CheckedRow
from minimind.data.sources import RowError
from minimind.data.tool_arguments import fit_arguments


def others_of(rows: Sequence[CheckedRow], place: int) -> Iterator[AnswerRow]:
    """The answers to other prompts than that of the answer at a place: those behind it, then those before it.

    Of several answers to one prompt the first begins with the first other answer, the second with the second, and so
    on, so that a file of good and bad answers in turn has mismatched answers of both kinds.
    """
    own = rows[place]
    assert isinstance(own, AnswerRow)

    def differs(row: CheckedRow) -> bool:
        return isinstance(row, AnswerRow) and row.prompt != own.prompt

    turn = next((step for step in range(place) if differs(rows[place - 1 - step])), place)
    behind = (rows[(place + step) % len(rows)] for step in range(1, len(rows)))
    others = (row for row in behind if isinstance(row, AnswerRow) and differs(row))
    if not turn:
        return others
    known = list(others)
    first = turn % max(1, len(known))
    return iter([*known[first:], *known[:first]])


def encode_answer(
    row: AnswerRow, number: int, encoder: ConversationEncoder, limit: LengthLimit, others: Iterable[AnswerRow] | None
) -> EncodedPair:
    """Tokenise a labelled answer.

    Args:
        number: number of the row in its source.
        encoder: one that counts the last turn only, which has the label.
        others: rows whose answers are mismatched with this prompt; the first that can be rendered is. None: no
            mismatched row.

    Raises:
        RowError: the template rejects the row, the answer is not found, or there is no other prompt.
    """
    assert encoder.options.last_turn_only
    given = encoder.given(row.tools, row.template_kwargs)

    def encode(messages: list[Message]) -> TokenizedRow:
        return encoder.encode(messages, number, row.tools, row.template_kwargs)

    messages = fit_arguments(row.messages, encoder.template, given)
    check_rendered(dataclasses.replace(row, messages=messages), encoder.template, given)
    compared = encoder.encode_compared(messages, number, row.tools, row.template_kwargs)
    full = half = compared.row
    # The first token of a row is never a target.
    counts = any(full.mask[1:])
    prompt_cut = False
    if limit.cut_prompt:
        for shorter in _with_shorter_prompts(messages):
            if len(half.tokens) <= limit.max_length:
                break
            messages, half, prompt_cut = shorter, encode(shorter), True
    chosen = _cut(half, limit)
    rejected = TokenizedRow(chosen.tokens[:1], [0])
    if others is not None:
        rejected = _cut(_mismatched(messages[:-1], others, encode), limit)
    return EncodedPair(
        chosen=chosen,
        rejected=rejected,
        # A mismatched row is cut to the limit and no reason to leave the answer out.
        lengths=(len(full.tokens), len(rejected.tokens)),
        prefix=common_prefix(chosen, rejected),
        prompt_length=full.mask.index(1, 1) if counts else len(full.tokens),
        least_limit=full.mask.index(1, 1) + 1 if counts else 0,
        problem=None if counts else "no token of the answer counts: it is empty, or the mask (--mask) does not find it",
        prompt_cut=prompt_cut,
        end_cut=len(half.tokens) > limit.max_length,
        is_lost=counts and not any(chosen.mask[1:]),
        other_mask=compared.differs,
    )


def _cut(row: TokenizedRow, limit: LengthLimit) -> TokenizedRow:
    return TokenizedRow(row.tokens[: limit.max_length], row.mask[: limit.max_length])


def _mismatched(
    prompt: list[Message], others: Iterable[AnswerRow], encode: Callable[[list[Message]], TokenizedRow]
) -> TokenizedRow:
    """A prompt with the answer of another row."""
    for other in others:
        try:
            return encode([*prompt, other.messages[-1]])
        except RowError:
            continue  # a call of a tool that this row does not have, for example
    raise RowError(
        "no row around it has another prompt, whose answer the KL term of the loss needs; shuffle the file, or take "
        "--loss bco or apo_zero_unpaired, which need none"
    )


def _with_shorter_prompts(messages: list[Message]) -> Iterator[list[Message]]:
    """The conversation with ever fewer turns of its prompt: the system message, then the prompt from a later user turn
    on. The last user turn stays."""
    system = next(place for place, message in enumerate(messages) if message["role"] != "system")
    for start in range(system + 1, len(messages) - 1):
        if messages[start]["role"] == "user":
            yield [*messages[:system], *messages[start:]]
