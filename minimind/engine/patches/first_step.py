"""Compares the patches of DeepSpeed's optimizer with its own code in the first step, and uses those that agree.

    gradients -> DeepSpeed's own reduction, cast, norm, clipping -> the first optimizer step
              -> the patches, on the same gradients              -> compared: patches that agree are used from then on

A version of DeepSpeed may change what a patch replaces without changing a name. The first step is DeepSpeed's, except
for a norm that agrees: it is the patch's, because the two may differ in the last bit. So a run has the same numbers
with and without the comparison, and a patch that differs has no effect.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from minimind.engine.patches.optimizer import (
    CAST_GRADIENTS_ONCE,
    DETECT_OVERFLOW_FROM_NORM,
    SKIP_REDUCTION_BUCKETS,
    SKIP_UNNEEDED_CLIPPING,
    Replacement,
    cast_gradients_once,
    fitting_patches,
    replace,
    skip_unneeded_clipping,
)
from minimind.engine.patches.registry import Patch, PatchSelection, find
from minimind.ranks.collectives import all_reduce
from minimind.ranks.world import World

_MODULE = "deepspeed.runtime.zero.stage_1_and_2"
_CLASS = f"{_MODULE}:DeepSpeedZeroOptimizer"
# Methods that are watched during the first step.
_WATCHED = (
    "reduce_independent_p_g_buckets_and_remove_grads",
    "get_flat_partition",
    "scaled_global_norm",
    "unscale_and_clip_grads",
    "step",
)
COMPARE_FIRST_STEP = Patch(
    name="compare_first_step",
    purpose="compares the optimizer's patches with DeepSpeed's own code in the first step, and uses those that agree",
    without="the patches of the optimizer are used without a comparison",
    names=(
        *(f"{_CLASS}.{name}" for name in _WATCHED),
        f"{_CLASS}.get_gradient_for_reduction",
        f"{_MODULE}:is_invalid_grad_norm",
    ),
    attributes=("averaged_gradients", "single_partition_of_fp32_groups"),
)
# The norm is summed in float64 and rounded to float32.
_NORM_TOLERANCE = 1e-6


def patch_optimizer(optimizer: Any, world: World, patches: PatchSelection) -> None:
    """Use the patches that fit a DeepSpeed optimizer, from the second step on if they agree with its own code.

    Args:
        optimizer: `engine.optimizer`; patched in place.
        world: the ranks, all of which must call.
        patches: which patches the run uses.
    """
    fitting = fitting_patches(optimizer, world.size == 1, patches)
    if not fitting:
        return
    if missing := COMPARE_FIRST_STEP.missing(optimizer):
        patches.report(
            f"  patches of the optimizer are off: they cannot be compared with DeepSpeed without {missing[0]}"
        )
    elif patches.uses(COMPARE_FIRST_STEP, optimizer):
        _FirstStep(optimizer, fitting, world, patches.report).watch()
    else:
        for replacement in fitting.values():
            replace(optimizer, replacement)


class _FirstStep:
    """Watches an optimizer until it has taken a step. Methods named as the optimizer's stand in for them.

    Args:
        optimizer: DeepSpeed's ZeRO-1/2 optimizer.
        fitting: the patches to compare.
        world: the ranks.
        report: prints a line.
    """

    def __init__(
        self, optimizer: Any, fitting: Mapping[Patch, Replacement], world: World, report: Callable[[str], object]
    ) -> None:
        self._optimizer, self._fitting, self._world, self._report = optimizer, fitting, world, report
        self._own = {name: getattr(optimizer, name) for name in _WATCHED}
        # Patch -> why it is not used.
        self._wrong: dict[Patch, str] = {}
        # Parameter -> its gradient before DeepSpeed reduced it, summed over micro-batches as DeepSpeed sums.
        self._unreduced: dict[int, Tensor] = {}
        # Parameter group -> this rank's gradients as DeepSpeed lists them, reduced.
        self._gradients: dict[int, list[Tensor]] = {}

    def watch(self) -> None:
        """Stand in for the optimizer's methods from here on."""
        for name in _WATCHED:
            setattr(self._optimizer, name, getattr(self, name))

    def reduce_independent_p_g_buckets_and_remove_grads(self, parameter: Any, *arguments: Any) -> Any:
        """Keep the gradient as backward made it."""
        if SKIP_REDUCTION_BUCKETS in self._fitting:
            gradient = self._optimizer.get_gradient_for_reduction(parameter)
            if id(parameter) in self._unreduced:
                self._unreduced[id(parameter)].add_(gradient)
            else:
                self._unreduced[id(parameter)] = gradient.clone()
        return self._own["reduce_independent_p_g_buckets_and_remove_grads"](parameter, *arguments)

    def get_flat_partition(self, parameters: Any, *arguments: Any, **options: Any) -> Any:
        """Keep DeepSpeed's list of a group's gradients; reduced and unreduced ones must be equal."""
        own = self._own["get_flat_partition"](parameters, *arguments, **options)
        if isinstance(own, list) and "param_group_idx" in options:
            self._gradients[options["param_group_idx"]] = list(own)
            self._compare(SKIP_REDUCTION_BUCKETS, lambda: self._equal_unreduced(parameters, own))
        return own

    def scaled_global_norm(self, *arguments: Any, **options: Any) -> Any:
        """The patch's norm if it agrees with DeepSpeed's, else DeepSpeed's."""
        own = self._own["scaled_global_norm"](*arguments, **options)
        # Under offload DeepSpeed lists no gradients.
        if self._gradients:
            self._compare(DETECT_OVERFLOW_FROM_NORM, lambda: self._norm_shows_nan(*arguments, **options))
        norms = [own]  # and the patch's, unless that fails

        def agrees() -> bool:
            patched = cast_gradients_once(self._recorded())
            groups = {group: patched["get_flat_partition"](param_group_idx=group) for group in self._gradients}
            norms.append(self._norm_of(groups, patched["get_grad_norm_direct"], *arguments, **options))
            return bool(torch.isclose(norms[1], own, rtol=_NORM_TOLERANCE, atol=0))

        self._compare(CAST_GRADIENTS_ONCE, agrees)
        return norms[-1] if CAST_GRADIENTS_ONCE in self._fitting and CAST_GRADIENTS_ONCE not in self._wrong else own

    def unscale_and_clip_grads(self, gradients: list[Tensor], norm: Any) -> None:
        """DeepSpeed has made a group's float32 gradient: the patch must make the same, and clip by the same factor."""
        clip = self._own["unscale_and_clip_grads"]

        def same_cast() -> bool:
            partitions = enumerate(self._optimizer.single_partition_of_fp32_groups)
            group = next(number for number, partition in partitions if partition.grad is gradients[0])
            patched = cast_gradients_once(self._recorded())["get_flat_partition"](param_group_idx=group)
            del self._gradients[group]
            return torch.equal(patched.flat_partition, gradients[0])

        def same_factor() -> bool:
            own, patched = gradients[0].new_ones(1), gradients[0].new_ones(1)
            clip([own], norm)
            settings = {name: getattr(self._optimizer, name) for name in ("clip_grad", "loss_scale")}
            view = SimpleNamespace(unscale_and_clip_grads=clip, **settings)
            skip_unneeded_clipping(view)["unscale_and_clip_grads"]([patched], norm)
            return torch.equal(own, patched)

        self._compare(CAST_GRADIENTS_ONCE, same_cast)
        self._compare(SKIP_UNNEEDED_CLIPPING, same_factor)
        clip(gradients, norm)

    def step(self, *arguments: Any, **options: Any) -> Any:
        """DeepSpeed's step. If it was not skipped for an overflow, nothing is watched any more."""
        result = self._own["step"](*arguments, **options)
        self._gradients.clear()
        if not self._optimizer.overflow:
            self._finish()
        return result

    def _compare(self, patch: Patch, agrees: Callable[[], bool]) -> None:
        """Note a patch that does not agree, or cannot be computed. All ranks compute the same, in the same order."""
        if patch not in self._fitting:
            return
        try:
            if not agrees():
                self._wrong.setdefault(patch, "its numbers in the first step were not DeepSpeed's")
        except Exception as error:  # noqa: BLE001 - whatever a changed DeepSpeed makes it raise
            self._wrong.setdefault(patch, f"it failed in the first step ({type(error).__name__}: {error})")

    def _equal_unreduced(self, parameters: Any, reduced: list[Tensor]) -> bool:
        # A single rank's list has every parameter, then padding.
        pairs = [
            (self._unreduced.pop(id(parameter)), gradient)
            for parameter, gradient in zip(parameters, reduced, strict=False)
            if id(parameter) in self._unreduced
        ]
        return all(torch.equal(one.flatten(), other.flatten()) for one, other in pairs)

    def _norm_shows_nan(self, *arguments: Any, **options: Any) -> bool:
        """Whether DeepSpeed takes the norm of a gradient that is not a number as an overflow."""
        groups = {group: [torch.full_like(own[0], torch.nan), *own[1:]] for group, own in self._gradients.items()}
        norm = self._norm_of(groups, self._optimizer.get_grad_norm_direct, *arguments, **options)
        return bool(find(f"{_MODULE}:is_invalid_grad_norm")(norm))

    def _norm_of(self, groups: Mapping[int, Any], norm: Any, *arguments: Any, **options: Any) -> Tensor:
        """DeepSpeed's norm of other gradients than its own, or with another norm of a group."""
        optimizer = self._optimizer
        own = optimizer.averaged_gradients
        # An attribute of the object hides the method of its class, until it is deleted.
        optimizer.averaged_gradients, optimizer.get_grad_norm_direct = groups, norm
        try:
            return torch.as_tensor(self._own["scaled_global_norm"](*arguments, **options))
        finally:
            optimizer.averaged_gradients = own
            del optimizer.get_grad_norm_direct

    def _recorded(self) -> SimpleNamespace:
        """An optimizer whose partitions are the recorded gradients, for the patch to be computed on."""
        return SimpleNamespace(
            get_flat_partition=lambda param_group_idx: self._gradients[param_group_idx],
            get_grad_norm_direct=self._optimizer.get_grad_norm_direct,
        )

    def _finish(self) -> None:
        """Use the patches that agreed on every rank, and name the others."""
        for name in _WATCHED:
            delattr(self._optimizer, name)  # the methods of its class are there again
        patches = list(self._fitting)
        wrong = torch.tensor([int(patch in self._wrong) for patch in patches], device=self._world.device)
        if self._world.size > 1:
            all_reduce(wrong, "max")
        for patch, is_wrong in zip(patches, wrong.tolist(), strict=True):
            if not is_wrong:
                replace(self._optimizer, self._fitting[patch])
                continue
            reason = self._wrong.get(patch, "on another rank its numbers in the first step were not DeepSpeed's")
            self._report(
                f"  WARNING: patch {patch.name!r} is off: {reason}; {patch.without}. "
                f"--disable_patches {patch.name} turns it off from the start"
            )
