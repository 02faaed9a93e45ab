"""Computations with the policy's whole model that are no batch of targets: generation.

compute -> with_model -> ModelUse -> one forward of the engine, in eval mode and without gradient -> compute(model)

Under ZeRO-3 only a forward of the engine has the weights. `compute` may call the model many times in it, on every rank
equally often. The weights are gathered module by module in each call, or once if the caller knows that they fit.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
from transformers import PreTrainedModel

from minimind.engine.patches.kept_weights import KEEP_GATHERED, kept_weights
from minimind.engine.patches.registry import PatchSelection
from minimind.engine.policy import Policy
from minimind.engine.scorer import ModelUse

Result = TypeVar("Result")


def needs_all_ranks(policy: Policy) -> bool:
    """Whether ranks must call the model equally often."""
    return policy.stage == 3 and policy.world.size > 1


@torch.no_grad()
def with_model(
    policy: Policy, compute: Callable[[PreTrainedModel], Result], *, keeps_weights: PatchSelection | None = None
) -> Result:
    """The result of a computation with the policy's model, which leaves the policy as it was.

    All ranks must call, if `needs_all_ranks`.

    Args:
        keeps_weights: under ZeRO-3 each weight is gathered once and kept until the end, if these patches allow it;
            None: each call of the model gathers them.
    """
    engine, use = policy.engine, ModelUse(compute=compute)
    trains = engine.training
    engine.eval()
    try:
        with _uncompiled(policy), _gathered(policy, keeps_weights):
            engine(use)
    except BaseException:
        if policy.stage == 3:
            # The hooks that release a module's weights have not run for the modules that failed.
            engine.empty_partition_cache()
        raise
    finally:
        engine.train(trains)
    return use.result


def _uncompiled(policy: Policy) -> contextlib.AbstractContextManager[object]:
    """Blocks were compiled for packs; batches with a cache would be compiled anew, each a few times."""
    # Without compiled blocks torch's compiler is not even imported.
    return torch.compiler.set_stance("force_eager") if policy.is_compiled else contextlib.nullcontext()


@contextlib.contextmanager
def _gathered(policy: Policy, keeps_weights: PatchSelection | None) -> Iterator[None]:
    """Under ZeRO-3: weights stay gathered, if they may."""
    parameters = list(policy.engine.module.parameters())
    if policy.stage == 3 and keeps_weights is not None and keeps_weights.uses(KEEP_GATHERED, parameters[0]):
        with kept_weights(policy.engine, parameters):
            yield
    else:
        yield
