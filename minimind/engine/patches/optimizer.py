"""What DeepSpeed's optimizer of ZeRO 1 and 2 need not do to 16-bit gradients here. No number changes, but that squares
are summed for the norm in another order, in float64 as before.

    gradients -> bucket -> reduced -> this rank's partition -> norm -> float32 -> clipped -> optimizer
                           nothing to reduce, nothing to part:     float32 first: the norm is read off
                           a rank that is alone                    what the optimizer takes

A shortcut is taken where DeepSpeed has all that it relies on, else everything goes its old way.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from deepspeed.runtime.zero import stage_1_and_2
from torch import Tensor

from minimind.native import ops

# What DeepSpeed looks at a norm with.
_NORM_CHECK = "is_invalid_grad_norm"
# What it calls gradients that lie together, and what it asks for them.
_TOGETHER, _ASKS_FOR_THEM = "GradPartitionBufferGroup", "_get_preflattened_grad_partition"
# What it marks padding with, and what we keep a gradient's norm as.
_PADDING, _NORM = "_zero_padding", "_minimind_norm"


def take_shortcuts(optimizer: Any, alone: bool) -> None:
    """Take those that a DeepSpeed optimizer allows; `alone`: there is one rank."""
    known = isinstance(optimizer, stage_1_and_2.DeepSpeedZeroOptimizer)
    if not known or optimizer.dtype == torch.float32 or optimizer.gradient_accumulation_dtype != optimizer.dtype:
        return
    if optimizer.dtype == torch.bfloat16:
        _look_at_norm_only(optimizer)
    if optimizer.cpu_offload:
        return
    if optimizer.device == "cpu":
        _clip_large_ones_only(optimizer)
        if (
            alone
            and optimizer.communication_data_type == optimizer.dtype
            and optimizer.gradient_predivide_factor == 1.0
        ):
            _leave_where_they_are(optimizer)
    if hasattr(stage_1_and_2, _TOGETHER) and hasattr(optimizer, _ASKS_FOR_THEM):
        _widen_once(optimizer)


def _look_at_norm_only(optimizer: Any) -> None:
    """Look for gradients that are not finite once instead of twice: DeepSpeed reads them all before it takes their
    norm, which is not finite either if one of them is not, and which it looks at as well."""
    looks = hasattr(stage_1_and_2, _NORM_CHECK) and getattr(optimizer, "compute_grad_norm", False)
    if looks and optimizer.check_grad_overflow:
        optimizer.check_overflow = lambda **_: None


def _leave_where_they_are(optimizer: Any) -> None:
    """A rank that is alone has nothing to sum over ranks: gradients need no bucket, no division by one, and no copy."""
    optimizer.contiguous_gradients = False
    optimizer.buffered_reduce_fallback = lambda *_, **__: None


def _clip_large_ones_only(optimizer: Any) -> None:
    """Do not multiply by one. The norm must be looked at for that, which a GPU would have to be waited for."""
    clip = optimizer.unscale_and_clip_grads

    def clip_if_large(gradients: list[Tensor], norm: Any) -> None:
        # DeepSpeed adds 1e-6 to the norm; there is none where nothing is to be clipped.
        small = optimizer.clip_grad > 0.0 and 0.0 <= norm < optimizer.clip_grad - 1e-5
        if optimizer.loss_scale != 1.0 or not small:
            clip(gradients, norm)

    optimizer.unscale_and_clip_grads = clip_if_large


def _widen_once(optimizer: Any) -> None:
    """Make the optimizer's float32 gradients as soon as they are whole, and see their norms on the way. DeepSpeed makes
    each float64 for the norm, then all one tensor, then that float32.

    On a CPU they keep their place: among what a backward leaves there is seldom a hole for all of them together.
    Nothing may change a gradient between backward and step (DeepSpeed's `safe_set_full_grad`): its norm would not
    follow.
    """
    parts, whole_norm = optimizer.get_flat_partition, optimizer.get_grad_norm_direct
    together = getattr(stage_1_and_2, _TOGETHER)
    kept: dict[int | None, Tensor] = {}

    def widened(*arguments: Any, **options: Any) -> Any:
        gradients = parts(*arguments, **options)
        if not isinstance(gradients, list):
            return gradients
        sizes = [gradient.numel() for gradient in gradients]
        group = options.get("param_group_idx")
        flat = kept.get(group)
        if flat is None or flat.numel() != sum(sizes):
            flat = gradients[0].new_empty(sum(sizes), dtype=torch.float32)
            if flat.is_cpu and group is not None:
                kept[group] = flat
        return together([_widen(*pair) for pair in zip(gradients, flat.split(sizes), strict=True)], flat)

    def norm(gradients: Sequence[Tensor], *arguments: Any, **options: Any) -> Tensor:
        return whole_norm([getattr(gradient, _NORM, gradient) for gradient in gradients], *arguments, **options)

    optimizer.get_flat_partition, optimizer.get_grad_norm_direct = widened, norm


def _widen(gradient: Tensor, place: Tensor) -> Tensor:
    """The gradient in its place of the whole. It carries its norm, and DeepSpeed's mark of padding, which belongs to no
    parameter."""
    wide = place.view(gradient.shape)
    squares = ops.cast_and_sum_squares(gradient, wide)
    if squares is not None:
        setattr(wide, _NORM, torch.tensor([math.sqrt(squares)], dtype=torch.float64))
    for tensor in (wide, getattr(wide, _NORM, wide)):
        setattr(tensor, _PADDING, getattr(gradient, _PADDING, False))
    return wide
