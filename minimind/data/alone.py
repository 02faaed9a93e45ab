"""Tokenises a row that stands alone.

    ConversationRow -> chosen: the conversation, as a template renders it
    TextRow         -> chosen: the text between a start and an end token; a long one may give several rows
                    -> rejected: one token that nothing is computed of

A table keeps it as a pair whose second row is empty, so that packing, budgets, caches and checks are those of pairs.
"""

from __future__ import annotations

import dataclasses

from minimind.data.differences import common_prefix
from minimind.data.encoding import ConversationEncoder, TokenizedRow
from minimind.data.left_out import check_rendered
from minimind.data.pairs import KEEP, SPLIT, EncodedPair, LengthLimit
from minimind.data.rows import ConversationRow, TextRow
from minimind.data.text_encoder import TextEncoder
from minimind.data.tool_arguments import fit_arguments


def encode_alone(row: ConversationRow, number: int, encoder: ConversationEncoder, limit: LengthLimit) -> EncodedPair:
    """Tokenise a conversation.

    Args:
        number: number of the row in its source.

    Raises:
        RowError: the template rejects the row, or an assistant turn is not found.
    """
    given = encoder.given(row.tools, row.template_kwargs)
    messages = fit_arguments(row.messages, encoder.template, given)
    check_rendered(dataclasses.replace(row, messages=messages), encoder.template, given)
    compared = encoder.encode_compared(messages, number, row.tools, row.template_kwargs)
    problem = None
    if not any(compared.row.mask[1:]):  # the first token of a row is never a target
        problem = "no token of an assistant turn counts: the turns are empty, or the mask (--mask) does not find them"
    return as_pair(compared.row, limit, problem=problem, other_mask=compared.differs)


def encode_text(row: TextRow, encoder: TextEncoder, limit: LengthLimit) -> list[EncodedPair]:
    """Tokenise a text. Under SPLIT the last token of a piece is the first of the next, so that each token but the first
    of the text is predicted once.

    Raises:
        RowError: the tokenizer rejects the text.
    """
    full, most = encoder.encode_text(row.text), limit.max_length
    if not row.text.strip():
        return [as_pair(full, limit, problem="the text is empty")]
    if limit.long_text == SPLIT and len(full.tokens) > most:
        starts = range(0, len(full.tokens) - 1, most - 1)
        pieces = [TokenizedRow(full.tokens[at : at + most], full.mask[at : at + most]) for at in starts]
        return [as_pair(piece, limit, problem=None) for piece in pieces]
    whole = as_pair(full, limit, problem=None)
    if limit.long_text == KEEP and whole.end_cut:
        closed = TokenizedRow([*whole.chosen.tokens[:-1], *encoder.end], whole.chosen.mask)
        whole = dataclasses.replace(whole, chosen=closed)
    return [whole]


def as_pair(full: TokenizedRow, limit: LengthLimit, *, problem: str | None, other_mask: bool = False) -> EncodedPair:
    """A row, cut to the limit, with a second row of a single token.

    Args:
        full: the whole row.
        problem: why no token of the whole row counts; None if one does.
        other_mask: its mask is not that of MiniMind's rule.
    """
    row = TokenizedRow(full.tokens[: limit.max_length], full.mask[: limit.max_length])
    nothing = TokenizedRow(row.tokens[:1], [0])
    first = 0 if problem is not None else full.mask.index(1, 1)
    return EncodedPair(
        chosen=row,
        rejected=nothing,
        lengths=(len(full.tokens), 1),
        prefix=common_prefix(row, nothing),
        prompt_length=first or len(full.tokens),
        least_limit=first + 1 if first else 0,
        problem=problem,
        prompt_cut=False,
        end_cut=len(full.tokens) > len(row.tokens),
        is_lost=problem is None and not any(row.mask[1:]),
        other_mask=other_mask,
    )
