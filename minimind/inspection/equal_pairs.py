"""Pairs that say the same as others: duplicates, contradictions, and pairs that the evaluation data have too.

    PairArrays of training, of evaluation -> find_equal -> EqualPairs

Rows that stand alone have no contradictions, and texts have no prompts.

Two pairs are equal if their messages are (data/identity.py). Texts that differ in a space are different.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from minimind.inspection.items import ItemKind
from minimind.inspection.pairs import PairArrays

Hashes = NDArray[np.uint64]
# Places that are named of each kind.
_NAMED = 5
# Odd numbers with irregular bits: their products spread over all 64 bits.
_FACTORS = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9], np.uint64)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Found:
    """Pairs of one kind.

    Attributes:
        pairs: their number.
        places: where the first of them are, as texts: "pairs.jsonl, line 7".
    """

    pairs: int
    places: tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class EqualPairs:
    """What pairs have in common. What the kind of items does not have is None.

    Attributes:
        pairs: their number.
        prompts: number of different prompts, or of different texts.
        duplicates: pairs that an earlier pair equals.
        contradictions: pairs whose answers another pair has the other way round, to the same prompt.
        leaked_prompts: pairs whose prompt is in the evaluation data; `leaked_pairs`: pairs that are there as a whole,
            either way round.
        eval_prompts: prompts of the evaluation data.
    """

    pairs: int
    prompts: int
    duplicates: Found
    contradictions: Found | None
    leaked_prompts: Found | None
    leaked_pairs: Found
    eval_prompts: int


def find_equal(pairs: PairArrays, evaluation: PairArrays, kind: ItemKind) -> EqualPairs:
    """Compare all pairs with each other and with those of the evaluation data, which may be none."""
    keys, eval_keys = _keys(pairs), _keys(evaluation)
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    # The first of equal ones comes first in a stable order.
    repeated = np.sort(order[1:][ordered[1:] == ordered[:-1]])
    # A pair contradicts another one if the other one is what it would be with its answers the other way round.
    contradictions, held_out = None, [eval_keys]
    if kind.has_two:
        contradictions = _found(pairs, np.flatnonzero(_contains(ordered, _keys(pairs, swapped=True))))
        held_out.append(_keys(evaluation, swapped=True))
    del order, ordered
    leaked_pairs = np.flatnonzero(_contains(np.sort(np.concatenate(held_out)), keys))
    prompts, eval_prompts = pairs.identity(0), np.unique(evaluation.identity(0))
    leaked_prompts = np.flatnonzero(_contains(eval_prompts, prompts)) if kind.has_prompts else None
    return EqualPairs(
        pairs=len(pairs),
        prompts=len(np.unique(prompts)),
        duplicates=Found(pairs=len(repeated), places=_repeats(pairs, keys, repeated[:_NAMED])),
        contradictions=contradictions,
        leaked_prompts=None if leaked_prompts is None else _found(pairs, leaked_prompts),
        leaked_pairs=_found(pairs, leaked_pairs),
        eval_prompts=len(eval_prompts),
    )


def _keys(pairs: PairArrays, *, swapped: bool = False) -> Hashes:
    """One hash of each whole pair, (n,).

    Args:
        swapped: of the pair with its answers the other way round.
    """
    keys = np.zeros(len(pairs), np.uint64)
    # Column by column, which needs a third of the memory. Numbers of 64 bits wrap around, which is meant.
    for part, factor in zip((0, 2, 1) if swapped else (0, 1, 2), _FACTORS, strict=True):
        mixed = pairs.identity(part)
        mixed *= factor
        mixed ^= mixed >> np.uint64(29)
        keys += mixed
    return keys


def _contains(ordered: Hashes, values: Hashes) -> NDArray[np.bool_]:
    """Which values are among sorted ones, (values,)."""
    if not len(ordered):
        return np.zeros(len(values), np.bool_)
    places = np.searchsorted(ordered, values)
    np.minimum(places, len(ordered) - 1, out=places)
    return ordered[places] == values


def _repeats(pairs: PairArrays, keys: Hashes, repeated: NDArray[np.int64]) -> tuple[str, ...]:
    """Where some pairs are, and the first that each of them equals."""
    firsts = [int(np.argmax(keys == keys[index])) for index in repeated]
    return tuple(
        f"{pairs.place(index)}, repeats {pairs.place(first)}" for index, first in zip(repeated, firsts, strict=True)
    )


def _found(pairs: PairArrays, indices: NDArray[np.int64]) -> Found:
    return Found(pairs=len(indices), places=tuple(pairs.place(index) for index in indices[:_NAMED]))
