"""Pairs that say the same as others: duplicates, contradictions, and pairs that the evaluation data have too.

    PairArrays of training, of evaluation -> find_equal -> EqualPairs

Two pairs are equal if their messages are (data/identity.py). Texts that differ in a space are different.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

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
    """What pairs have in common.

    Attributes:
        prompts: number of different prompts.
        duplicates: pairs that an earlier pair equals.
        contradictions: pairs whose answers another pair has the other way round, to the same prompt.
        leaked_prompts: pairs whose prompt is in the evaluation data; `leaked_pairs`: pairs that are there as a whole,
            either way round.
        eval_prompts: prompts of the evaluation data.
    """

    prompts: int
    duplicates: Found
    contradictions: Found
    leaked_prompts: Found
    leaked_pairs: Found
    eval_prompts: int


def find_equal(pairs: PairArrays, evaluation: PairArrays) -> EqualPairs:
    """Compare all pairs with each other and with those of the evaluation data, which may be none."""
    keys, eval_keys = _keys(pairs.identities), _keys(evaluation.identities)
    both_ways = np.concatenate([eval_keys, _swapped(evaluation.identities)])
    prompts, eval_prompts = pairs.identities[:, 0], evaluation.identities[:, 0]
    return EqualPairs(
        prompts=len(np.unique(prompts)),
        duplicates=_duplicates(pairs, keys),
        contradictions=_found(pairs, np.isin(keys, _swapped(pairs.identities))),
        leaked_prompts=_found(pairs, np.isin(prompts, eval_prompts)),
        leaked_pairs=_found(pairs, np.isin(keys, both_ways)),
        eval_prompts=len(np.unique(eval_prompts)),
    )


def _keys(identities: Hashes) -> Hashes:
    """One hash of each whole pair, (n,)."""
    mixed = identities * _FACTORS
    # Numbers of 64 bits wrap around, which is meant.
    return (mixed ^ (mixed >> np.uint64(29))).sum(1, dtype=np.uint64)


def _swapped(identities: Hashes) -> Hashes:
    """The hash that each pair would have with its answers the other way round, (n,)."""
    return _keys(identities[:, [0, 2, 1]])


def _duplicates(pairs: PairArrays, keys: Hashes) -> Found:
    _, first, which = np.unique(keys, return_index=True, return_inverse=True)
    repeated = np.flatnonzero(first[which] != np.arange(len(keys)))
    places = (f"{pairs.place(index)}, repeats {pairs.place(first[which[index]])}" for index in repeated[:_NAMED])
    return Found(pairs=len(repeated), places=tuple(places))


def _found(pairs: PairArrays, mask: NDArray[np.bool_]) -> Found:
    indices = np.flatnonzero(mask)
    return Found(pairs=len(indices), places=tuple(pairs.place(index) for index in indices[:_NAMED]))
