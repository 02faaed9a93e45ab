"""Pairs -> one packed micro-batch, and the padded layout for models that cannot take packs.

    N pairs -> PackedPairs: tokens (T,), positions, segments, K targets
            -> PaddedPairs: tokens (2N, longest row), attention mask, the same K targets

Both list their targets in the same order (per pair: within the shared prefix, of the chosen half, of the rejected
half), so everything downstream of the log-probs is one path.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from minimind.data.table import PreferencePair


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairBatch:
    """What both layouts share. T tokens, K targets, N pairs.

    Attributes:
        token_ids: int64; (T,) packed, (2N, longest row) padded.
        target_positions: (K,) int64, where in the flattened `token_ids` the model predicts the target.
        target_ids: (K,) int64, the token predicted there.
        target_counts: (N, 3) int64, targets within the shared prefix, of chosen, of rejected.
        row_tokens: tokens of the 2N rows, a shared prefix counted for each.
        lines: where the pairs stand in their file.
    """

    token_ids: Tensor
    target_positions: Tensor
    target_ids: Tensor
    target_counts: Tensor
    row_tokens: int
    lines: tuple[int, ...]

    @property
    def num_pairs(self) -> int:
        return len(self.lines)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PackedPairs(PairBatch):
    """Pairs one after the other, `prefix | rest of chosen | rest of rejected`, without a pad.

    Attributes:
        position_ids: (T,) int64, restarting with each pair, and at the fork for the rejected half.
        segments: per pair the lengths of prefix, rest of chosen, rest of rejected.
    """

    position_ids: Tensor
    segments: tuple[tuple[int, int, int], ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PaddedPairs(PairBatch):
    """Rows chosen, rejected, chosen, ..., padded on the right.

    Attributes:
        attention_mask: (2N, longest row) int64, 0 at pads.
    """

    attention_mask: Tensor


Batch = TypeVar("Batch", bound=PairBatch)


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch with its tensors on a device; on the way to a GPU nothing waits for those of a `pinned` one."""
    return _with_tensors(batch, lambda tensor: tensor.to(device, non_blocking=True))


def pinned(batch: Batch) -> Batch:
    """The batch in memory that a GPU can read by itself."""
    return _with_tensors(batch, Tensor.pin_memory)


def _with_tensors(batch: Batch, change: Callable[[Tensor], Tensor]) -> Batch:
    changed: dict[str, Any] = {
        field.name: change(value)
        for field in dataclasses.fields(batch)
        if isinstance(value := getattr(batch, field.name), Tensor)
    }
    return dataclasses.replace(batch, **changed)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Targets:
    """Targets of one pair, as positions within its rows and token ids, in three parts."""

    positions: tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]
    ids: tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]]


def _fork(pair: PreferencePair, share_prefix: bool) -> int:
    """How many input tokens the halves share: the last token of a row is only a target, never an input."""
    return min(pair.prefix, len(pair.chosen) - 1, len(pair.rejected) - 1) if share_prefix else 0


def _targets(pair: PreferencePair, fork: int) -> _Targets:
    """A target is predicted one position before it stands; the fork's last token predicts one of each half."""
    chosen, rejected = np.flatnonzero(pair.chosen_mask), np.flatnonzero(pair.rejected_mask)
    chosen, rejected = chosen[chosen > 0], rejected[rejected > 0]
    shared = chosen[chosen < fork]
    chosen, rejected = chosen[chosen >= max(fork, 1)], rejected[rejected >= max(fork, 1)]
    return _Targets(
        positions=(shared - 1, chosen - 1, rejected - 1),
        ids=(pair.chosen[shared], pair.chosen[chosen], pair.rejected[rejected]),
    )


def pack(pairs: Sequence[PreferencePair], share_prefix: bool = True) -> PackedPairs:
    """Pack pairs into one sequence; `share_prefix=False` repeats the prefix in both halves (the tests' oracle)."""
    tokens: list[NDArray[Any]] = []
    positions: list[NDArray[Any]] = []
    target_positions: list[NDArray[Any]] = []
    target_ids: list[NDArray[Any]] = []
    segments, counts, start = [], [], 0
    for pair in pairs:
        fork = _fork(pair, share_prefix)
        chosen, rejected = len(pair.chosen) - 1 - fork, len(pair.rejected) - 1 - fork
        tokens += [pair.chosen[: fork + chosen], pair.rejected[fork : fork + rejected]]
        positions += [np.arange(fork + chosen), np.arange(fork, fork + rejected)]
        targets = _targets(pair, fork)
        in_prefix, in_chosen, in_rejected = targets.positions
        # The rejected half lies `chosen` tokens further on, but its first target is predicted by the prefix's end.
        moved = np.where(in_rejected >= fork, in_rejected + chosen, in_rejected)
        target_positions += [start + in_prefix, start + in_chosen, start + moved]
        target_ids += targets.ids
        segments.append((fork, chosen, rejected))
        counts.append([len(part) for part in targets.ids])
        start += fork + chosen + rejected
    return PackedPairs(
        token_ids=_concatenated(tokens),
        position_ids=_concatenated(positions),
        target_positions=_concatenated(target_positions),
        target_ids=_concatenated(target_ids),
        target_counts=_counted(counts, target_ids),
        segments=tuple(segments),
        row_tokens=sum(len(pair.chosen) + len(pair.rejected) for pair in pairs),
        lines=tuple(pair.line for pair in pairs),
    )


def join(packs: Sequence[PackedPairs]) -> PackedPairs:
    """Several packs as one, their targets in the same order: for a forward that has nothing to keep for backward."""
    starts = np.cumsum([0, *(len(one.token_ids) for one in packs)])
    return PackedPairs(
        token_ids=torch.cat([one.token_ids for one in packs]),
        position_ids=torch.cat([one.position_ids for one in packs]),
        target_positions=torch.cat([one.target_positions + int(s) for one, s in zip(packs, starts, strict=False)]),
        target_ids=torch.cat([one.target_ids for one in packs]),
        target_counts=torch.cat([one.target_counts for one in packs]),
        segments=tuple(segment for one in packs for segment in one.segments),
        row_tokens=sum(one.row_tokens for one in packs),
        lines=tuple(line for one in packs for line in one.lines),
    )


def pad(pairs: Sequence[PreferencePair], pad_id: int = 0) -> PaddedPairs:
    """Lay pairs out as 2N rows padded to the longest."""
    rows = [row for pair in pairs for row in (pair.chosen[:-1], pair.rejected[:-1])]
    longest = max(len(row) for row in rows)
    token_ids = np.full((len(rows), longest), pad_id, np.int64)
    attention_mask = np.zeros((len(rows), longest), np.int64)
    for index, row in enumerate(rows):
        token_ids[index, : len(row)] = row
        attention_mask[index, : len(row)] = 1
    target_positions: list[NDArray[Any]] = []
    target_ids: list[NDArray[Any]] = []
    counts = []
    for index, pair in enumerate(pairs):
        targets = _targets(pair, _fork(pair, share_prefix=True))
        in_prefix, in_chosen, in_rejected = targets.positions
        start = 2 * index * longest
        target_positions += [start + in_prefix, start + in_chosen, start + longest + in_rejected]
        target_ids += targets.ids
        counts.append([len(part) for part in targets.ids])
    return PaddedPairs(
        token_ids=torch.from_numpy(token_ids),
        attention_mask=torch.from_numpy(attention_mask),
        target_positions=_concatenated(target_positions),
        target_ids=_concatenated(target_ids),
        target_counts=_counted(counts, target_ids),
        row_tokens=sum(len(pair.chosen) + len(pair.rejected) for pair in pairs),
        lines=tuple(pair.line for pair in pairs),
    )


def _counted(counts: Sequence[Sequence[int]], target_ids: Sequence[NDArray[Any]]) -> Tensor:
    """(N, 3) int64. Sums over rows trust it: on a GPU a look would cost a wait."""
    assert sum(map(sum, counts)) == sum(map(len, target_ids))
    return torch.tensor(counts)


def _concatenated(parts: Sequence[NDArray[Any]]) -> Tensor:
    return torch.from_numpy(np.concatenate(parts).astype(np.int64))
