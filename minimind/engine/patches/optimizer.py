"""Removes redundant passes over 16-bit gradients in DeepSpeed's ZeRO-1/2 optimizer.

    gradients -> bucket -> reduced -> this rank's partition -> norm -> float32 -> clipped -> optimizer
                 skip_reduction_buckets                        cast_gradients_once
                                                               detect_overflow_from_norm
                                                                              skip_unneeded_clipping

No number changes, with one exception: squares are summed for the norm in another order, in float64 as before. A run
uses a patch only if `PatchSelection` allows it and the first step has shown that it agrees with DeepSpeed's own code
(first_step.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from minimind.engine.patches.registry import Patch, PatchSelection, find
from minimind.native import ops

_MODULE = "deepspeed.runtime.zero.stage_1_and_2"
_CLASS = f"{_MODULE}:DeepSpeedZeroOptimizer"
# DeepSpeed's class of gradients that share one flat tensor, and its attribute that marks padding.
_FLAT_GROUP, _PADDING = "GradPartitionBufferGroup", "_zero_padding"
# Our attribute of a float32 gradient that holds its norm.
_NORM = "_minimind_norm"

DETECT_OVERFLOW_FROM_NORM = Patch(
    name="detect_overflow_from_norm",
    purpose="finds non-finite bfloat16 gradients from their norm, without a separate pass over all gradients",
    without="DeepSpeed reads all gradients once more in each step",
    names=(f"{_MODULE}:is_invalid_grad_norm", f"{_CLASS}.check_overflow"),
    attributes=("check_grad_overflow", "compute_grad_norm"),
)
SKIP_REDUCTION_BUCKETS = Patch(
    name="skip_reduction_buckets",
    purpose="leaves gradients of a single CPU rank where backward put them, since there is nothing to reduce",
    without="DeepSpeed copies all gradients through its reduction bucket",
    names=(f"{_CLASS}.buffered_reduce_fallback",),
    attributes=("communication_data_type", "contiguous_gradients", "gradient_predivide_factor"),
)
SKIP_UNNEEDED_CLIPPING = Patch(
    name="skip_unneeded_clipping",
    purpose="skips the multiplication of gradients by 1 when their norm is below the clipping threshold, on a CPU",
    without="DeepSpeed multiplies all gradients by 1 in each step that needs no clipping",
    names=(f"{_CLASS}.unscale_and_clip_grads",),
    attributes=("clip_grad", "loss_scale"),
)
CAST_GRADIENTS_ONCE = Patch(
    name="cast_gradients_once",
    purpose="casts gradients to float32 once, and computes their norms in the same pass",
    without="DeepSpeed casts gradients to float64 for the norm, flattens them, then casts them to float32",
    names=(
        f"{_MODULE}:{_FLAT_GROUP}",
        f"{_CLASS}._get_preflattened_grad_partition",
        f"{_CLASS}.get_flat_partition",
        f"{_CLASS}.get_grad_norm_direct",
    ),
)


# An optimizer -> the attributes that a patch replaces, computed from the optimizer's own.
Replacement = Callable[[Any], Mapping[str, Any]]


def fitting_patches(optimizer: Any, single_rank: bool, patches: PatchSelection) -> dict[Patch, Replacement]:
    """The patches that fit a DeepSpeed optimizer; none for other optimizers and for float32 gradients.

    Args:
        optimizer: `engine.optimizer`.
        single_rank: whether the world has one rank.
        patches: which patches the run uses.
    """
    stage_1_and_2 = find(_CLASS)
    known = isinstance(stage_1_and_2, type) and isinstance(optimizer, stage_1_and_2)
    # Muon makes its updates while DeepSpeed collects the gradients of a partition, which the patches would not see.
    if known and any(group.get("use_muon") for group in optimizer.optimizer.param_groups):
        return {}
    if not known or optimizer.dtype == torch.float32 or optimizer.gradient_accumulation_dtype != optimizer.dtype:
        return {}
    fitting: dict[Patch, Replacement] = {}
    # float16 keeps DeepSpeed's own overflow check: its loss scaling depends on it.
    if optimizer.dtype == torch.bfloat16 and optimizer.compute_grad_norm and optimizer.check_grad_overflow:
        fitting[DETECT_OVERFLOW_FROM_NORM] = detect_overflow_from_norm
    # Under offload the gradients are in other buffers, which none of the patches below knows.
    if not optimizer.cpu_offload:
        if optimizer.device == "cpu":
            fitting[SKIP_UNNEEDED_CLIPPING] = skip_unneeded_clipping
            if single_rank and _reduces_plainly(optimizer):
                fitting[SKIP_REDUCTION_BUCKETS] = skip_reduction_buckets
        fitting[CAST_GRADIENTS_ONCE] = cast_gradients_once
    return {patch: replacement for patch, replacement in fitting.items() if patches.uses(patch, optimizer)}


def replace(optimizer: Any, replacement: Replacement) -> None:
    """Apply a patch to an optimizer."""
    for name, value in replacement(optimizer).items():
        setattr(optimizer, name, value)


def detect_overflow_from_norm(optimizer: Any) -> dict[str, Any]:
    """Replace DeepSpeed's overflow check, which reads all gradients, by a function that does nothing.

    DeepSpeed checks the norm as well, and the norm is not finite if any gradient is not.
    """
    return {"check_overflow": lambda **_: None}


def _reduces_plainly(optimizer: Any) -> bool:
    """Whether the reduction of a single rank changes neither dtype nor scale."""
    return optimizer.communication_data_type == optimizer.dtype and optimizer.gradient_predivide_factor == 1.0


def skip_reduction_buckets(optimizer: Any) -> dict[str, Any]:
    """Let a single rank skip the bucket, the copy and the division by a world size of 1."""
    return {"contiguous_gradients": False, "buffered_reduce_fallback": lambda *_, **__: None}


def skip_unneeded_clipping(optimizer: Any) -> dict[str, Any]:
    """Skip clipping if its factor would be 1. CPU only: on a GPU, reading the norm would wait for the device."""
    clip = optimizer.unscale_and_clip_grads

    def clip_if_needed(gradients: list[Tensor], norm: Any) -> None:
        # DeepSpeed's factor is 1 if norm + 1e-6 <= clip_grad; 1e-5 leaves room for rounding. A negative norm is
        # DeepSpeed's mark of a non-finite one. With clip_grad 0 DeepSpeed clips nothing, and `clip` returns at once.
        small = optimizer.clip_grad > 0.0 and 0.0 <= norm < optimizer.clip_grad - 1e-5
        if optimizer.loss_scale != 1.0 or not small:
            clip(gradients, norm)

    return {"unscale_and_clip_grads": clip_if_needed}


def cast_gradients_once(optimizer: Any) -> dict[str, Any]:
    """Cast the reduced gradients to the optimizer's float32 immediately, and compute each norm in that pass.

    On a CPU the float32 buffer is reused in all steps: free memory is fragmented after a backward pass, so a new buffer
    of this size would come from the operating system each time. No code may change a gradient between backward and step
    (DeepSpeed's `safe_set_full_grad` would): its norm is already computed.
    """
    get_partition, get_norm = optimizer.get_flat_partition, optimizer.get_grad_norm_direct
    flat_group = find(f"{_MODULE}:{_FLAT_GROUP}")
    buffers: dict[int | None, Tensor] = {}  # parameter group -> reused float32 buffer

    def get_float32_partition(*arguments: Any, **options: Any) -> Any:
        gradients = get_partition(*arguments, **options)
        if not isinstance(gradients, list):
            return gradients
        sizes = [gradient.numel() for gradient in gradients]
        group = options.get("param_group_idx")
        flat = buffers.get(group)
        if flat is None or flat.numel() != sum(sizes):
            flat = gradients[0].new_empty(sum(sizes), dtype=torch.float32)
            # A call without a group number is not for the optimizer's step: its result must not be overwritten.
            if flat.is_cpu and group is not None:
                buffers[group] = flat
        return flat_group([_cast(*pair) for pair in zip(gradients, flat.split(sizes), strict=True)], flat)

    def get_stored_norm(gradients: Sequence[Tensor], *arguments: Any, **options: Any) -> Tensor:
        # The norm of a one-element tensor is its value, so DeepSpeed combines the stored norms as it would gradients.
        return get_norm([getattr(gradient, _NORM, gradient) for gradient in gradients], *arguments, **options)

    return {"get_flat_partition": get_float32_partition, "get_grad_norm_direct": get_stored_norm}


def _cast(gradient: Tensor, out: Tensor) -> Tensor:
    """Cast a gradient to float32 into `out`, (elements,), a part of the flat buffer.

    Returns:
        `out` in the gradient's shape. If a CPU kernel made it, it carries the gradient's norm, (1,) float64. It also
        carries DeepSpeed's padding mark: padding belongs to no parameter and must not count in the norm.
    """
    cast = out.view(gradient.shape)
    squares = ops.cast_and_sum_squares(gradient, cast)
    if squares is not None:
        setattr(cast, _NORM, torch.tensor([math.sqrt(squares)], dtype=torch.float64))
    for tensor in (cast, getattr(cast, _NORM, cast)):
        setattr(tensor, _PADDING, getattr(gradient, _PADDING, False))
    return cast
