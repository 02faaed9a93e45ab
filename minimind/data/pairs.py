"""Tokenises one checked pair and cuts it to the length limit.

    PreferenceRow -> both halves at full length, checked -> prompt shortened -> ends cut -> EncodedPair

Which pairs are trained on is decided later, by `--on_bad_row` and `--on_long_row`: the tokens do not depend on that,
except for `cut_prompt`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from minimind.data.differences import (
    answer_start,
    check_prompts,
    common_prefix,
    difference_counts,
    least_limit,
    no_difference,
)
from minimind.data.encoding import ConversationEncoder, TokenizedRow
from minimind.data.identity import shared_messages
from minimind.data.left_out import words_of
from minimind.data.messages import Message
from minimind.data.rows import PreferenceRow

# Values of --on_long_row for texts.
SPLIT, KEEP = "split", "keep"


@dataclasses.dataclass(frozen=True, kw_only=True)
class LengthLimit:
    """How long a row may be.

    Attributes:
        max_length: tokens of a row; what is left of a longer row after the first step below is cut at its end.
        cut_prompt: first leave out the oldest turns of the prompt, the same for both halves, until both fit.
        long_text: for texts: SPLIT makes several rows of a longer one, KEEP closes the cut text with the end token;
            others cut it.
    """

    max_length: int
    cut_prompt: bool = False
    long_text: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncodedPair:
    """A tokenised pair.

    Attributes:
        chosen, rejected: at most `max_length` tokens each.
        lengths: tokens of both rows before anything was cut.
        prefix: number of leading tokens that both rows share, with equal masks.
        prompt_length: tokens before the answers that differ, before anything was cut.
        least_limit: smallest `max_length` under which cutting the ends leaves a difference that counts; 0 if there is
            none at full length.
        problem: why the pair has no difference that counts, at its full length; None if it has one.
        prompt_cut: turns of the prompt were left out.
        end_cut: tokens at the end of a row were left out.
        is_lost: cutting left no difference that counts.
        other_mask: tokens or mask differ from those of MiniMind's rule.
    """

    chosen: TokenizedRow
    rejected: TokenizedRow
    lengths: tuple[int, int]
    prefix: int
    prompt_length: int
    least_limit: int
    problem: str | None
    prompt_cut: bool
    end_cut: bool
    is_lost: bool
    other_mask: bool


def encode_pair(row: PreferenceRow, number: int, encoder: ConversationEncoder, limit: LengthLimit) -> EncodedPair:
    """Tokenise a row.

    Args:
        number: line number of the row in its file.

    Raises:
        RowError: the template rejects the row, an assistant turn is not found, or the rendered prompts differ.
    """

    def encode(messages: list[Message]) -> TokenizedRow:
        return encoder.encode(messages, number, row.tools, row.template_kwargs)

    compared = [
        encoder.encode_compared(messages, number, row.tools, row.template_kwargs, other)
        for messages, other in ((row.chosen, row.rejected), (row.rejected, row.chosen))
    ]
    halves = [one.row for one in compared]
    check_prompts(row, halves[1], encode)
    lengths = (len(halves[0].tokens), len(halves[1].tokens))
    prefix = common_prefix(*halves)
    problem = None if difference_counts(halves[0], halves[1], prefix) else no_difference(row, *halves)
    prompt_length = answer_start(halves[0], prefix)
    least = 0 if problem is not None else least_limit(halves[0], halves[1], prefix)
    prompt_cut = False
    if limit.cut_prompt:
        for shorter in _with_shorter_prompts(row, words_of(encoder.template)):
            if _fit(halves, limit):
                break
            halves, prompt_cut = [encode(messages) for messages in shorter], True
            prefix = common_prefix(*halves)
    end_cut = not _fit(halves, limit)
    chosen, rejected = (TokenizedRow(half.tokens[: limit.max_length], half.mask[: limit.max_length]) for half in halves)
    prefix = min(prefix, len(chosen.tokens), len(rejected.tokens))
    return EncodedPair(
        chosen=chosen,
        rejected=rejected,
        lengths=lengths,
        prefix=prefix,
        prompt_length=prompt_length,
        least_limit=least,
        problem=problem,
        prompt_cut=prompt_cut,
        end_cut=end_cut,
        # What was not cut is as it was found above.
        is_lost=problem is None and (prompt_cut or end_cut) and not difference_counts(chosen, rejected, prefix),
        other_mask=any(one.differs for one in compared),
    )


def _fit(halves: list[TokenizedRow], limit: LengthLimit) -> bool:
    return all(len(half.tokens) <= limit.max_length for half in halves)


def _with_shorter_prompts(row: PreferenceRow, words: frozenset[str]) -> Iterator[tuple[list[Message], list[Message]]]:
    """Both halves with ever fewer turns of their prompt: the system message, then the prompt from a later user turn on.

    The prompt is what both halves share before the first message that differs. Its last user turn stays.

    Args:
        words: all words of the template's source. Keys that are not among them, such as a score, are no difference.
    """
    shared = shared_messages(row, words)
    system = 0
    while system < shared and row.chosen[system]["role"] == "system":
        system += 1
    for start in range(system + 1, shared):
        if row.chosen[start]["role"] == "user":
            yield [*row.chosen[:system], *row.chosen[start:]], [*row.rejected[:system], *row.rejected[start:]]
