"""The oracle: what a run computes is compared, before it trains, with the model as transformers builds it.

    a short and a long pair -> plain rows -> log-probs of each row alone, by the model's own forward and attention
                            -> a pack     -> log-probs \\
                            -> padded     -> log-probs  > equal within rounding? -> Verdict: packed, padded or refused

Packed is preferred, then padded. All forwards run in the policy's engine, so that under ZeRO-3, where no rank has the
whole model, the compared weights are those that train. A reference that is another model is judged in its own engine.
All ranks score the same pairs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from minimind.data.packs import Batch, PackedPairs, PairBatch, pack, pad
from minimind.data.pair_tables import PairTables
from minimind.data.table import PreferencePair
from minimind.engine.plain_row import plain_row, plain_rows
from minimind.errors import MiniMindError, PackError
from minimind.ranks.collectives import gather
from minimind.ranks.world import World

PACKED, PADDED, REFUSED = "packed", "padded", "refused"
# Largest difference of a row's log-probs, as the root of the mean square over its targets, that rounding explains.
# Measured with 16 layers of width 768 and log-probs around -10: 1.6e-6, 0.013 and 0.003. The errors of layers add up
# like a random walk, so that 80 layers have about twice as much. Sinks or a bias that are left out make 0.1 and more.
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.05, "float16": 0.01}
_REASON_LENGTH = 200


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verdict:
    """How a run may lay out its rows.

    Attributes:
        layout: packed, padded or refused.
        reason: why not packed; for a refused model why neither. Empty if packed.
    """

    layout: str
    reason: str = ""


class Scored(Protocol):
    """An engine whose model is judged: the policy, or a reference that is another model."""

    world: World
    dtype: str

    def probe(self, batch: Batch, training: bool = False) -> Tensor:
        """Log-probs of a batch's targets, (K,) float32; after an error the engine is usable."""
        ...


def probe_pairs(table: PairTables) -> tuple[PreferencePair, ...]:
    """The shortest and the longest pair whose both halves have targets."""
    order = table.packed_tokens.argsort(kind="stable")

    def first(indices: Iterable[int]) -> PreferencePair | None:
        pairs = (table[int(index)] for index in indices)
        return next((one for one in pairs if all(mask[1:].any() for _, mask in _halves(one))), None)

    found = [pair for pair in (first(order), first(order[::-1])) if pair is not None]
    # Under `--on_bad_row keep` a file may have no such pair; then the lengths alone are tried.
    return tuple(found) or (table[int(order[0])], table[int(order[-1])])


class ObstacleError(Exception):
    """The reason, in one line, why something cannot be trained exactly. Every rank raises it."""


def judge(
    model: Scored, pairs: Sequence[PreferencePair], pad_id: int, obstacle: str | None, deterministic: bool = True
) -> Verdict:
    """The layout in which an engine computes what its model computes for each row alone. All ranks must call.

    Args:
        pairs: what is compared; the same on all ranks.
        obstacle: a known reason against packs, which are then not tried.
        deterministic: the model has no dropout, so that train mode must give the numbers of eval mode.
    """
    try:
        # The oracle itself: one row alone, through the model's own attention, without mask, pack or padding.
        rows = _scores(model, [row for pair in pairs for row in plain_rows(pair) if len(row.token_ids)])
        # Checked first: against NaN every later difference would be NaN, and the layout would get the blame.
        if not all(bool(row.isfinite().all()) for row in rows):
            raise ObstacleError("its own log-probs of a row are not finite; check the weights")
        _check_causal(model, pairs, rows)
    except ObstacleError as problem:
        return Verdict(layout=REFUSED, reason=f"{problem}")
    # A model may compute otherwise in train mode, and that is the mode that trains.
    modes = (False, True) if deterministic else (False,)
    try:
        if obstacle is not None:
            raise ObstacleError(obstacle)
        _check_layout(model, pairs, pack(pairs), rows, modes)
        return Verdict(layout=PACKED)
    except ObstacleError as problem:
        reason = str(problem)
    try:
        _check_layout(model, pairs, pad(pairs, pad_id), rows, modes)
        return Verdict(layout=PADDED, reason=reason)
    except ObstacleError as problem:
        return Verdict(layout=REFUSED, reason=f"{reason}; {problem}")


def _check_causal(model: Scored, pairs: Sequence[PreferencePair], rows: Sequence[Tensor]) -> None:
    """Cut the tokens after the first half of a row's targets: the log-probs of that half must stay.

    Raises:
        ObstacleError: they change.
    """
    halves = [half for pair in pairs for half in _halves(pair)]
    cut, expected = [], []
    for (tokens, mask), row in zip(halves, rows, strict=True):
        if len(row) < 2:
            continue
        kept = len(row) // 2
        # The last input is the token that predicts the last target that is kept.
        inputs = int(mask[1:].nonzero()[0][kept - 1]) + 1
        cut.append(plain_row(tokens, mask, pairs[0].index, inputs))
        expected.append(row[:kept])
    without = "it is not causal (an encoder, or is_decoder is false in its config.json): without the tokens after them"
    _require_equal(model, _scores(model, cut), expected, f"{without}, log-probs of a row change")


def _halves(pair: PreferencePair) -> list[tuple[NDArray[np.int32], NDArray[np.uint8]]]:
    """Tokens and mask of both rows; of those that have an input, as an answer without a second one has but one."""
    halves = ((pair.chosen, pair.chosen_mask), (pair.rejected, pair.rejected_mask))
    return [(tokens, mask) for tokens, mask in halves if len(tokens) > 1]


def _check_layout(
    model: Scored, pairs: Sequence[PreferencePair], batch: PairBatch, rows: Sequence[Tensor], modes: Iterable[bool]
) -> None:
    """Compare a batch with each of its rows alone, in eval mode and in train mode.

    Raises:
        ObstacleError: the model cannot compute the batch, or computes something else.
    """
    layout = "a pack" if isinstance(batch, PackedPairs) else "padded rows"
    for training in modes:
        (log_probs,) = _scores(model, [batch], training)
        mode = " in train mode" if training else ""
        what = f"its log-probs of {layout}{mode} differ from those of each row alone"
        _require_equal(model, _by_row(pairs, batch, log_probs), rows, what)


def _scores(model: Scored, batches: Sequence[Batch], training: bool = False) -> list[Tensor]:
    """Log-probs of each batch.

    Raises:
        ObstacleError: the model raised anything, on any rank. Ranks run the same code on the same pairs, so all of
            them raise or none; else one would wait for the others, and the watch ends the run.
    """
    found: list[Tensor] = []
    mine = ""
    try:
        found = [model.probe(batch, training) for batch in batches]
    except (MemoryError, torch.OutOfMemoryError):
        raise  # says nothing about the model
    except PackError as error:
        mine = str(error)
    except MiniMindError:
        raise
    except Exception as error:  # noqa: BLE001 - models of every kind raise every kind
        lines = str(error).strip().splitlines() or [""]
        mine = f"its forward raises {type(error).__name__}: {lines[0]}"[:_REASON_LENGTH]
    # One rank's problem is that of all: whoever went on alone would wait in the next forward.
    if problem := next(filter(None, gather(model.world, mine)), ""):
        raise ObstacleError(problem)
    return found


def _by_row(pairs: Sequence[PreferencePair], batch: PairBatch, log_probs: Tensor) -> list[Tensor]:
    """Log-probs (K,) of a batch of pairs -> those of each row that has an input: chosen, rejected, chosen, ..."""
    parts = log_probs.split(batch.target_counts.flatten().tolist())
    rows: list[Tensor] = []
    for pair, prefix, chosen, rejected in zip(pairs, parts[::3], parts[1::3], parts[2::3], strict=True):
        both = torch.cat((prefix, chosen)), torch.cat((prefix, rejected))
        rows += both[: len(_halves(pair))]
    return rows


def _require_equal(model: Scored, rows: Sequence[Tensor], expected: Sequence[Tensor], what: str) -> None:
    """Raises ObstacleError where rounding does not explain the difference of two lists of rows, on any rank."""
    distances = [
        # Root of the mean square, not the largest difference: one token of a long row may round badly.
        float((one - other).square().mean().sqrt().nan_to_num(nan=torch.inf))
        for one, other in zip(rows, expected, strict=True)
        if len(other)
    ]
    worst, tolerance = max(gather(model.world, max(distances, default=0.0))), TOLERANCE[model.dtype]
    if worst > tolerance:
        raise ObstacleError(f"{what} by {worst:.3g} (rounding in {model.dtype} explains {tolerance:g})")
