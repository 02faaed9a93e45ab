"""Builds batches: micro-batches as the scorer takes them.

    N pairs -> pack -> PackedPairs: token_ids (T,), position_ids, segments, K targets
            -> pad  -> PaddedPairs: token_ids (2N, longest row), attention_mask, the same K targets

The padded layout is for models that cannot take packs, and for tests, which compare the two. Both layouts list the
targets in the same order (pair by pair: shared prefix, chosen, rejected), so the code after the log-probs is the same
for both. Shape letters: N pairs, T tokens of a pack, K targets.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from minimind.data.table import PreferencePair

AnyBatch = TypeVar("AnyBatch", bound="Batch")
AnyPairBatch = TypeVar("AnyPairBatch", bound="PairBatch")
# How pairs become a batch: `pack` or `pad`.
Layout = Callable[[Sequence[PreferencePair]], "PairBatch"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Batch:
    """A micro-batch of any job: tokens, and the K targets whose log-probs the job needs.

    Attributes:
        token_ids: int64; (T,) packed, (rows, longest row) padded.
        target_positions: (K,) int64, index into the flattened `token_ids` where the model predicts the target.
        target_ids: (K,) int64, the token predicted there.
        row_tokens: number of tokens of all rows; a prefix that two rows share counts for each of them.
        indices: `PreferencePair.index` of each example.
    """

    token_ids: Tensor
    target_positions: Tensor
    target_ids: Tensor
    row_tokens: int
    indices: tuple[int, ...]

    def to_device(self: AnyBatch, device: torch.device) -> AnyBatch:
        """A copy with all tensors on the device. The copy of a pinned batch to a GPU is asynchronous."""
        return self._map_tensors(lambda tensor: tensor.to(device, non_blocking=True))

    def without_tokens(self) -> Batch:
        """The batch of which only the number of tokens and the indices are kept."""
        none = self.token_ids.new_empty(0)
        return Batch(
            token_ids=none, target_positions=none, target_ids=none, row_tokens=self.row_tokens, indices=self.indices
        )

    def pin_memory(self: AnyBatch) -> AnyBatch:
        """A copy in page-locked memory, from which a GPU can copy while the CPU works on."""
        return self._map_tensors(Tensor.pin_memory)

    def _map_tensors(self: AnyBatch, change: Callable[[Tensor], Tensor]) -> AnyBatch:
        changed: dict[str, Any] = {
            field.name: change(value)
            for field in dataclasses.fields(self)
            if isinstance(value := getattr(self, field.name), Tensor)
        }
        return dataclasses.replace(self, **changed)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairBatch(Batch):
    """A micro-batch of N preference pairs, in either layout.

    Attributes:
        target_counts: (N, 3) int64, number of targets in the shared prefix, in chosen, in rejected.
        scores: (N, 2) float32, of the chosen and of the rejected answers in the data; None unless a loss needs them.
        labels: (N,) bool, whether the chosen row is desirable; None unless a loss needs them.
        halves: the chosen rows alone and the rejected rows alone, each a batch of N pairs whose rejected row has no
            target; None unless a loss computes the two apart.
    """

    target_counts: Tensor
    scores: Tensor | None = None
    labels: Tensor | None = None
    halves: tuple[PairBatch, PairBatch] | None = None

    @property
    def num_pairs(self) -> int:
        return len(self.indices)

    def without_tokens(self) -> PairBatch:
        """The batch of which only the number of tokens, the lines, the counts, the scores and labels are kept."""
        return PairBatch(
            **vars(super().without_tokens()),
            target_counts=self.target_counts,
            scores=self.scores,
            labels=self.labels,
            halves=self.halves and (self.halves[0].without_tokens(), self.halves[1].without_tokens()),
        )

    def _map_tensors(self: AnyPairBatch, change: Callable[[Tensor], Tensor]) -> AnyPairBatch:
        changed = super()._map_tensors(change)
        if self.halves is None:
            return changed
        chosen, rejected = self.halves
        return dataclasses.replace(changed, halves=(chosen._map_tensors(change), rejected._map_tensors(change)))


class Segment(NamedTuple):
    """Lengths of one example's parts of a pack, in tokens: `prefix | rest of chosen | rest of rejected`.

    A part may be empty. `(0, length, 0)` is a single row: a segment without a rejected half.
    """

    prefix: int
    chosen: int
    rejected: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class PackedPairs(PairBatch):
    """Pairs one after the other in one sequence, without padding.

    Attributes:
        position_ids: (T,) int64. Each pair starts at 0; its rejected part starts at the prefix's length.
        segments: of each pair.
    """

    position_ids: Tensor
    segments: tuple[Segment, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PaddedPairs(PairBatch):
    """Rows chosen, rejected, chosen, ..., padded on the right; halves without an input are left out.

    Attributes:
        attention_mask: (2N or fewer, longest row) int64, 0 at padding.
    """

    attention_mask: Tensor


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Targets:
    """Targets of one pair in three parts: shared prefix, chosen, rejected.

    Attributes:
        positions: index in the row of the token that predicts the target.
        ids: the target's token.
    """

    positions: tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]
    ids: tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]]


def _fork(pair: PreferencePair, share_prefix: bool) -> int:
    """Number of input tokens that both rows share. A row's last token is a target only, never an input."""
    return min(pair.prefix, len(pair.chosen) - 1, len(pair.rejected) - 1) if share_prefix else 0


def _targets(pair: PreferencePair, fork: int) -> _Targets:
    """The masked tokens of a pair. The prefix's last token predicts a target of each half."""
    # One set of targets serves both halves there.
    assert np.array_equal(pair.chosen_mask[:fork], pair.rejected_mask[:fork]), "the masks of a shared prefix differ"
    chosen, rejected = np.flatnonzero(pair.chosen_mask), np.flatnonzero(pair.rejected_mask)
    # No token precedes the first one, so nothing predicts it.
    chosen, rejected = chosen[chosen > 0], rejected[rejected > 0]
    shared = chosen[chosen < fork]
    chosen, rejected = chosen[chosen >= fork], rejected[rejected >= fork]
    return _Targets(
        positions=(shared - 1, chosen - 1, rejected - 1),
        ids=(pair.chosen[shared], pair.chosen[chosen], pair.rejected[rejected]),
    )


def pack(pairs: Sequence[PreferencePair], share_prefix: bool = True) -> PackedPairs:
    """Pack pairs into one sequence.

    Args:
        share_prefix: False repeats the prefix in both halves; tests compare the two.
    """
    tokens: list[NDArray[Any]] = []
    positions: list[NDArray[Any]] = []
    target_positions: list[NDArray[Any]] = []
    target_ids: list[NDArray[Any]] = []
    segments, counts, start = [], [], 0
    for pair in pairs:
        fork = _fork(pair, share_prefix)
        chosen, rejected = len(pair.chosen) - 1 - fork, len(pair.rejected) - 1 - fork
        tokens += [pair.chosen[: fork + chosen], pair.rejected[fork : fork + rejected]]
        # The rejected half goes on where the prefix ends, as if chosen were not there.
        positions += [np.arange(fork + chosen), np.arange(fork, fork + rejected)]
        targets = _targets(pair, fork)
        in_prefix, in_chosen, in_rejected = targets.positions
        # In the pack the chosen part lies between prefix and rejected part. The first rejected target has a position
        # below `fork` and is not shifted: the prefix's last token predicts it.
        shifted = np.where(in_rejected >= fork, in_rejected + chosen, in_rejected)
        target_positions += [start + in_prefix, start + in_chosen, start + shifted]
        target_ids += targets.ids
        segments.append(Segment(prefix=fork, chosen=chosen, rejected=rejected))
        counts.append([len(part) for part in targets.ids])
        start += fork + chosen + rejected
    return PackedPairs(
        token_ids=_concatenate(tokens),
        position_ids=_concatenate(positions),
        target_positions=_concatenate(target_positions),
        target_ids=_concatenate(target_ids),
        target_counts=_count_tensor(counts, target_ids),
        segments=tuple(segments),
        row_tokens=sum(pair.row_tokens for pair in pairs),
        indices=tuple(pair.index for pair in pairs),
    )


def join(packs: Sequence[PackedPairs]) -> PackedPairs:
    """Concatenate packs into one, without their scores; targets keep their order. For a forward without a backward,
    which needs less memory and can take more tokens."""
    starts = np.cumsum([0, *(len(one.token_ids) for one in packs)])
    return PackedPairs(
        token_ids=torch.cat([one.token_ids for one in packs]),
        position_ids=torch.cat([one.position_ids for one in packs]),
        target_positions=torch.cat([one.target_positions + int(s) for one, s in zip(packs, starts, strict=False)]),
        target_ids=torch.cat([one.target_ids for one in packs]),
        target_counts=torch.cat([one.target_counts for one in packs]),
        segments=tuple(segment for one in packs for segment in one.segments),
        row_tokens=sum(one.row_tokens for one in packs),
        indices=tuple(index for one in packs for index in one.indices),
    )


def pad(pairs: Sequence[PreferencePair], pad_id: int = 0) -> PaddedPairs:
    """Make 2N rows of N pairs, padded to the longest row. A half of a single token has no input and no row."""
    rows = [row for pair in pairs for row in (pair.chosen[:-1], pair.rejected[:-1]) if len(row)]
    longest = max(len(row) for row in rows)
    token_ids = np.full((len(rows), longest), pad_id, np.int64)
    attention_mask = np.zeros((len(rows), longest), np.int64)
    for index, row in enumerate(rows):
        token_ids[index, : len(row)] = row
        attention_mask[index, : len(row)] = 1
    target_positions: list[NDArray[Any]] = []
    target_ids: list[NDArray[Any]] = []
    counts = []
    start = 0
    for pair in pairs:
        targets = _targets(pair, _fork(pair, share_prefix=True))
        in_prefix, in_chosen, in_rejected = targets.positions
        # Both halves have a whole row here, so that the prefix's targets are read from that of chosen.
        target_positions += [start + in_prefix, start + in_chosen, start + longest + in_rejected]
        target_ids += targets.ids
        counts.append([len(part) for part in targets.ids])
        start += ((len(pair.chosen) > 1) + (len(pair.rejected) > 1)) * longest
    return PaddedPairs(
        token_ids=torch.from_numpy(token_ids),
        attention_mask=torch.from_numpy(attention_mask),
        target_positions=_concatenate(target_positions),
        target_ids=_concatenate(target_ids),
        target_counts=_count_tensor(counts, target_ids),
        row_tokens=sum(pair.row_tokens for pair in pairs),
        indices=tuple(pair.index for pair in pairs),
    )


def with_values(layout: Layout, *, scores: bool = False, labels: bool = False, halves: bool = False) -> Layout:
    """A layout whose batches also have the scores, the labels or the single rows of their pairs, for losses that need
    them."""

    def build(pairs: Sequence[PreferencePair]) -> PairBatch:
        batch = layout(pairs)
        if scores:
            batch = dataclasses.replace(batch, scores=torch.tensor([pair.scores for pair in pairs]))
        if labels:
            batch = dataclasses.replace(batch, labels=torch.tensor([pair.label for pair in pairs]))
        if halves:
            chosen = layout([_alone(pair, pair.chosen, pair.chosen_mask) for pair in pairs])
            rejected = layout([_alone(pair, pair.rejected, pair.rejected_mask) for pair in pairs])
            batch = dataclasses.replace(batch, halves=(chosen, rejected))
        return batch

    return build


def _alone(pair: PreferencePair, tokens: NDArray[np.int32], mask: NDArray[np.uint8]) -> PreferencePair:
    """One row of a pair as a pair whose other row is a token that nothing is computed of."""
    return dataclasses.replace(
        pair, chosen=tokens, chosen_mask=mask, rejected=tokens[:1], rejected_mask=np.zeros(1, np.uint8), prefix=1
    )


def _count_tensor(counts: Sequence[Sequence[int]], target_ids: Sequence[NDArray[Any]]) -> Tensor:
    """(N, 3) int64."""
    # Row sums rely on these counts and do not check them: on a GPU a check would have to wait for the device.
    assert sum(map(sum, counts)) == sum(map(len, target_ids))
    return torch.tensor(counts)


def _concatenate(parts: Sequence[NDArray[Any]]) -> Tensor:
    return torch.from_numpy(np.concatenate(parts).astype(np.int64))
