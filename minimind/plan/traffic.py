"""How many bytes a rank sends in a global step, as theory has it and DeepSpeed's communication logger confirms.

Volumes are in parameters P first: gathering P costs P, scattering or reducing gradients to their owners costs P, an
all-reduce costs 2 P (Rajbhandari et al., 2020, section 7). A ring sends (N - 1) / N of it from each of N ranks.

    stage 0   2 P                          once a global step
    stage 1   P (2 P) + P                  gradients to their owners (an all-reduce), new parameters to all
    stage 2   M (P or 2 P) + P             the same, gradients after each of M micro-batches
    stage 3   M (P + P - kept + P)         parameters for forward and for backward, gradients to their owners
    reference P                            for each forward, which takes as many micro-batches as memory allows
"""

from __future__ import annotations

import dataclasses

from minimind.plan.choice import Machine, StepLoad, ZeroChoice
from minimind.plan.memory import kept_for_backward
from minimind.plan.sizes import ModelSizes


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepTraffic:
    """Bytes that one rank sends in a global step: for parameters, for gradients, for the reference's parameters."""

    parameters: int
    gradients: int
    reference: int

    @property
    def total(self) -> int:
        return self.parameters + self.gradients + self.reference


def step_traffic(
    sizes: ModelSizes, choice: ZeroChoice, reference: ZeroChoice, load: StepLoad, machine: Machine
) -> StepTraffic:
    """Traffic of a rank in one global step."""
    total, batches = sizes.parameters, load.micro_batches
    weights = gradients = 0.0
    if choice.stage == 0:
        gradients = 2.0 * total * load.width
    elif choice.stage < 3:
        times = batches if choice.stage == 2 else 1
        gradients = float(times * (1 if choice.reduces_to_owner else 2) * total * load.width)
        weights = float(total * load.width)
    else:
        small = sizes.small(choice.keep_below)
        width = 1 if choice.int8_weights else load.width
        forward = backward = (total - small) * width
        backward = max(0, backward - kept_for_backward(sizes, choice, load) * width)
        if choice.secondary_ranks > 1:
            # Backward gathers from the copy that the ranks of a node share: nothing of it leaves the node.
            backward = 0
        # 4-bit gradients are for the way between nodes.
        narrow = choice.int4_gradients and machine.nodes > 1
        gradients = batches * total * (0.5 if narrow else load.width)
        weights = float(batches * (forward + backward) + small * load.width)
    scored = 0
    if load.reference:
        forwards = -(-batches // load.reference_batches)
        scored = forwards * (total - sizes.small(reference.keep_below)) * load.width
    share = (machine.ranks - 1) / machine.ranks
    return StepTraffic(parameters=int(weights * share), gradients=int(gradients * share), reference=int(scored * share))
