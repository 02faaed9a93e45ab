"""Communication: bytes that a rank sends in a global step.

    ModelSizes, ZeroChoice, StepLoad, Machine -> StepTraffic

Volumes in parameters P: gathering P costs P, a reduce-scatter of gradients costs P, an all-reduce costs 2 P
(Rajbhandari et al., 2020, section 7). In a ring each of N ranks sends (N - 1) / N of the volume. M micro-batches.

    stage 0    2 P                       all-reduce of the gradients once per global step
    stage 1    (P or 2 P) + P            gradients to their owners (or all-reduce), new parameters to all ranks
    stage 2    M (P or 2 P) + P          the same, but with a reduction after each micro-batch
    stage 3    M (P + P - kept + P)      parameters for forward and for backward, reduce-scatter of the gradients
    reference  P per forward             a forward scores as many micro-batches as memory allows
    moving it  2 P in float32            at stages 1 and 2, every --reference_update steps; nothing at stage 3

DeepSpeed's communication logger confirms the volumes (tests/distributed/test_plan.py).
"""

from __future__ import annotations

import dataclasses

from minimind.plan.choice import Machine, StepLoad, ZeroChoice
from minimind.plan.memory import kept_for_backward
from minimind.plan.sizes import ModelSizes

_FLOAT32 = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepTraffic:
    """Bytes that one rank sends in a global step.

    Attributes:
        parameters, gradients: of the policy.
        reference: for the parameters of the reference, and to move it, spread over the steps between.
    """

    parameters: int
    gradients: int
    reference: int

    @property
    def total(self) -> int:
        return self.parameters + self.gradients + self.reference


def step_traffic(
    sizes: ModelSizes,
    choice: ZeroChoice,
    reference: ZeroChoice,
    load: StepLoad,
    machine: Machine,
    other: ModelSizes | None = None,
) -> StepTraffic:
    """Traffic of a rank in one global step; `other` are the sizes of a reference that is another model."""
    total, batches = sizes.parameters, load.micro_batches
    trained = sizes.trained
    weights = gradients = 0.0
    if choice.stage == 0:
        gradients = 2.0 * trained * load.width
    elif choice.stage < 3:
        times = batches if choice.stage == 2 else 1
        gradients = float(times * (1 if choice.reduces_to_owner else 2) * trained * load.width)
        weights = float(trained * load.width)
    else:
        small = sizes.small(choice.keep_below)
        width = 1 if choice.int8_weights else load.width
        forward = backward = max(0, (total - small) * width - sizes.saved(width))
        backward = max(0, backward - kept_for_backward(sizes, choice, load) * width)
        if choice.secondary_ranks > 1:
            # The backward gathers from the second copy of the shards, which needs no traffic between nodes.
            backward = 0
        # ZeRO++ uses 4-bit gradients between nodes only.
        quantised = choice.int4_gradients and machine.nodes > 1
        gradients = batches * trained * (0.5 if quantised else load.width)
        weights = float(batches * (forward + backward) + small * load.width)
    scored = 0
    # The reference of a policy with adapters is in its own engine.
    if load.reference and (not sizes.adapters or choice.stage == 3):
        forwards = -(-batches // load.reference_batches)
        scorer = other or sizes
        whole = scorer.small(reference.keep_below)
        scored = forwards * max(0, (scorer.parameters - whole) * load.width - scorer.saved(load.width))
    if load.update is not None and 0 < choice.stage < 3:
        # Each float32 parameter is all-reduced, with the other ranks' parts as zeros (engine/policy.py).
        scored += 2 * _FLOAT32 * total // load.update.every
    share = (machine.ranks - 1) / machine.ranks
    return StepTraffic(parameters=int(weights * share), gradients=int(gradients * share), reference=int(scored * share))
