"""Reads and sets how DeepSpeed partitions a live model: which elements of which parameter this rank owns.

parameter -> shard_of, full_numel                               ZeRO-3's attributes of a parameter
engine.optimizer -> owned_ranges -> make_shard_state -> load_shard_state    the rank's flat states, by parameter
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from minimind.engine.patches.checkpoint_files import STAGE2_KEYS, STAGE3_KEYS
from minimind.engine.patches.registry import Patch

_STAGE2 = "deepspeed.runtime.zero.stage_1_and_2:DeepSpeedZeroOptimizer"
_STAGE3 = "deepspeed.runtime.zero.stage3:DeepSpeedZeroOptimizer_Stage3"

FILL_OWN_SHARDS = Patch(
    name="fill_own_shards",
    purpose="lets each rank copy its own part of the start weights into ZeRO-3's shards",
    without="rank 0 reads each start weight and DeepSpeed distributes it",
    attributes=("ds_tensor",),
)
RESHARD_CHECKPOINTS = Patch(
    name="reshard_checkpoints",
    purpose="loads a checkpoint under another number of ranks or another ZeRO stage",
    without="only the ranks and the ZeRO stage of a checkpoint can resume from it",
    names=(
        "deepspeed.utils.tensor_fragment:fragment_address",
        "deepspeed.utils.tensor_fragment:tensor_fragment",
        f"{_STAGE2}.load_state_dict",
        f"{_STAGE3}.load_state_dict",
        f"{_STAGE3}.get_param_id",
        f"{_STAGE3}.checkpoint_event_prologue",
        f"{_STAGE3}.checkpoint_event_epilogue",
    ),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class OwnedRange:
    """Elements of a flattened parameter that a rank owns.

    Attributes:
        group: index of the flat tensor.
        offset: index of the first element in the flat tensor.
        start, stop: the elements of the parameter; equal if the rank owns only padding.
    """

    group: int
    offset: int
    start: int
    stop: int


def shard_of(parameter: Any) -> Tensor:
    """This rank's part of a ZeRO-3 parameter, (ceil(numel / ranks),), in the parameter's dtype."""
    return parameter.ds_tensor


def full_numel(parameter: nn.Parameter) -> int:
    """Elements of a whole parameter. Under ZeRO-3 the parameter itself is empty."""
    return getattr(parameter, "ds_numel", parameter.numel())


def wrapped_optimizer(optimizer: Any, stage: int) -> Any:
    """The optimizer that DeepSpeed's ZeRO optimizer wraps; at stage 0 there is no wrapper."""
    return optimizer.optimizer if stage else optimizer


def flat_sizes(optimizer: Any, stage: int) -> list[int]:
    """Elements of this rank's flat tensors, one per group, at ZeRO stages 1 to 3."""
    if stage == 3:
        return [flat.numel() for flat in optimizer.fp32_partitioned_groups_flat]
    return [group["params"][0].numel() for group in optimizer.optimizer.param_groups]


def owned_ranges(
    optimizer: Any, parameters: Mapping[str, nn.Parameter], stage: int, rank: int
) -> dict[str, OwnedRange]:
    """The range that a rank owns of each parameter, at ZeRO stages 1 to 3; parameters of other ranks are left out."""
    ranges = {
        name: _stage3_range(optimizer, parameter, rank) if stage == 3 else _stage2_range(parameter)
        for name, parameter in parameters.items()
    }
    return {name: owned for name, owned in ranges.items() if owned is not None}


def _stage2_range(parameter: Any) -> OwnedRange | None:
    """Stages 1 and 2 flatten all parameters of a group together and partition the result; it may cut a parameter."""
    # None if this rank's partition has no element of the parameter. In DeepSpeed "hp" is float32 and "lp" 16-bit.
    mapping = parameter._hp_mapping
    if mapping is None:
        return None
    own = mapping.lp_fragment_address
    return OwnedRange(
        group=mapping.param_group_index,
        offset=mapping.hp_fragment_address.start,
        start=own.start,
        stop=own.start + own.numel,
    )


def _stage3_range(optimizer: Any, parameter: Any, rank: int) -> OwnedRange:
    """Stage 3 pads and partitions each parameter by itself."""
    # `part` is the padded share; the last ranks own less of the parameter, or nothing.
    group, offset, part = optimizer.grad_position[optimizer.get_param_id(parameter)]
    start, stop = (min(edge * part, full_numel(parameter)) for edge in (rank, rank + 1))
    return OwnedRange(group=group, offset=offset, start=start, stop=stop)


def make_shard_state(
    optimizer: Any,
    stage: int,
    *,
    masters: Sequence[Tensor],
    states: Mapping[int, Mapping[str, Any]],
    hyperparameters: Mapping[str, Any],
    scaler: Mapping[str, Any],
) -> dict[str, Any]:
    """A state_dict of this rank's ZeRO optimizer with other contents.

    Args:
        optimizer: DeepSpeed's ZeRO optimizer.
        stage: its stage, 1 to 3.
        masters: float32 weights, one flat tensor per group.
        states: the wrapped optimizer's states by group number.
        hyperparameters: replace those of every parameter group.
        scaler: DeepSpeed's loss scaling.
    """
    masters_key, inner_key = STAGE3_KEYS if stage == 3 else STAGE2_KEYS
    own = optimizer.state_dict()
    groups = [{**group, **hyperparameters} for group in own[inner_key]["param_groups"]]
    inner = {"state": states, "param_groups": groups}
    return {**own, **scaler, masters_key: masters, inner_key: inner}


def load_shard_state(optimizer: Any, stage: int, state: Mapping[str, Any], rank: int, ranks: int) -> None:
    """Load a rank's state_dict into its ZeRO optimizer. All ranks must call.

    DeepSpeed's loader takes the states of all ranks, and uses only its own.
    """
    shards: list[Mapping[str, Any] | None] = [None] * ranks
    shards[rank] = state
    # Stage 3 expects both calls around a load: the second gathers small weights that every rank keeps whole.
    if stage == 3:
        optimizer.checkpoint_event_prologue()
    optimizer.load_state_dict(shards, load_from_fp32_weights=True)
    if stage == 3:
        optimizer.checkpoint_event_epilogue()
