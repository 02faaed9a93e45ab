"""Says what is wrong with a pair whose difference does not reach the tokens that count.

    PreferenceRow, both halves tokenised at full length -> check_prompts, no_difference -> reason

Halves that differ as messages can be equal as tokens: a template leaves keys out, strips texts and rewrites turns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from minimind.data.encoding import TokenizedRow
from minimind.data.messages import Message, differing_keys, listed
from minimind.data.rows import PreferenceRow
from minimind.data.sources import RowError


def common_prefix(one: TokenizedRow, other: TokenizedRow) -> int:
    """Number of leading tokens that two rows share, and that count in both or in neither.

    A pack computes the shared prefix once, with one set of targets. Where an answer is the last one of its half alone,
    or a template has plain texts as markers, equal tokens may count in one row only.
    """
    return min(_shared(one.tokens, other.tokens), _shared(one.mask, other.mask))


def _shared(one: list[int], other: list[int]) -> int:
    """Number of leading numbers that two lists share."""
    # Bisection compares each token at most twice, and slices of lists are compared faster than arrays are made of them.
    shared, above = 0, min(len(one), len(other)) + 1
    while shared + 1 < above:
        middle = (shared + above) // 2
        if one[shared:middle] == other[shared:middle]:
            shared = middle
        else:
            above = middle
    return shared


def difference_counts(chosen: TokenizedRow, rejected: TokenizedRow, prefix: int) -> bool:
    """Whether a pair can teach anything: both rows have a token that counts, and one of these is behind the prefix.

    Where no token behind the shared prefix counts, both rows count the same tokens after the same context, so their
    log-probs are equal whatever the model is.

    Args:
        prefix: number of leading tokens that both rows share.
    """
    # The first token of a row is never a target.
    counted = [any(row.mask[1:]) for row in (chosen, rejected)]
    # Equal rows say nothing, even if a template without markers of its own lets other tokens of them count.
    return (
        all(counted)
        and chosen.tokens != rejected.tokens
        and any(any(row.mask[max(prefix, 1) :]) for row in (chosen, rejected))
    )


def least_limit(chosen: TokenizedRow, rejected: TokenizedRow, prefix: int) -> int:
    """Smallest number of tokens to which both rows of a pair can be cut so that `difference_counts` is still true.

    Args:
        chosen, rejected: rows of which `difference_counts` is true.
        prefix: number of leading tokens that both rows share.
    """
    rows = (chosen, rejected)
    first_counted = max(row.mask.index(1, 1) for row in rows)
    behind = min(row.mask.index(1, max(prefix, 1)) for row in rows if any(row.mask[max(prefix, 1) :]))
    return 1 + max(first_counted, behind, _shared(chosen.tokens, rejected.tokens))


def answer_start(row: TokenizedRow, prefix: int) -> int:
    """Number of tokens before the answers that differ.

    Args:
        row: either row of a pair.
        prefix: number of leading tokens that both rows share; answers may begin with the same words.
    """
    start = prefix
    while start and row.mask[start - 1]:
        start -= 1
    return start


def check_prompts(row: PreferenceRow, rejected: TokenizedRow, encode: Callable[[list[Message]], TokenizedRow]) -> None:
    """Check that the first difference that the template renders is between two assistant turns.

    `checked_row` has compared the contents of prompts. Their other keys must be equal if the template reads them. And
    if it drops the difference between two answers, a later user turn that differs would make two prompts of one.

    Args:
        rejected: the rejected half, tokenised.
        encode: tokenises messages of this row.

    Raises:
        RowError: the prompts differ.
    """
    pairs = list(zip(row.chosen, row.rejected, strict=False))
    # Few rows have other differences than those between assistant turns; only these are tokenised again.
    if not any(one != other and not _both_answers(one, other) for one, other in pairs):
        return
    dropped: list[str] = []
    for index, (one, other) in enumerate(pairs):
        if one == other:
            continue
        if encode([*row.rejected[:index], one, *row.rejected[index + 1 :]]).tokens == rejected.tokens:
            dropped += differing_keys(one, other)
            continue
        if _both_answers(one, other):
            return
        before = (
            f"; messages before them differ in {_listed_once(dropped)}, which it does not render" if dropped else ""
        )
        raise RowError(
            f"the prompts differ: the chat template renders message {index} of 'chosen' ({one['role']}) and of "
            f"'rejected' ({other['role']}) differently, which differ in {listed(differing_keys(one, other))}{before}"
        )


def no_difference(row: PreferenceRow, chosen: TokenizedRow, rejected: TokenizedRow) -> str:
    """Why a pair has no difference that counts, for the pair's full length."""
    uncounted = [half for half, one in (("chosen", chosen), ("rejected", rejected)) if not any(one.mask[1:])]
    if uncounted:
        halves = " and of ".join(map(repr, uncounted))
        return f"no token of {halves} counts: the assistant turns are empty, or the mask (--mask) does not find them"
    if chosen.tokens != rejected.tokens:
        return "the tokens that count are the same: 'chosen' and 'rejected' differ only outside of them"
    pairs = zip(row.chosen, row.rejected, strict=False)
    keys = [key for one, other in pairs for key in differing_keys(one, other)]
    if "content" in keys or "tool_calls" in keys or not keys:
        place = f"in {_listed_once(keys)}" if keys else "in the number of messages"
        return f"the chat template renders 'chosen' and 'rejected' the same: it drops their difference {place}"
    return (
        f"the answers have the same text: 'chosen' and 'rejected' differ only in {_listed_once(keys)}, which the chat "
        "template does not render"
    )


def _both_answers(one: Message, other: Message) -> bool:
    return bool(one["role"] == other["role"] == "assistant")


def _listed_once(keys: Sequence[str]) -> str:
    return listed(dict.fromkeys(keys))
