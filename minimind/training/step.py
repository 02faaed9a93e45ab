"""One global step, for any job.

    micro-batches -> job.targets -> policy's log-probs -> job.outcome -> backward for each -> optimizer step

The loss of a global step is the mean over its items on all ranks, however they are split into micro-batches.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from minimind.data.packs import Batch
from minimind.engine.policy import Policy
from minimind.errors import TrainingError
from minimind.model.device_transfer import to_device
from minimind.ranks.watch import Watch
from minimind.training.jobs.job import Job
from minimind.training.metrics import MetricSums


def train_step(policy: Policy, job: Job, batches: Sequence[Batch], sums: MetricSums, watch: Watch) -> None:
    """Train on one rank's micro-batches of a global step, and add their metrics to `sums`.

    Raises:
        TrainingError: on every rank, before any weight changes, if the gradient is not finite. Its attribute `finite`
            says for each of this rank's micro-batches whether its log-probs and losses were finite.
    """
    batches = [batch.to_device(policy.world.device) for batch in batches]
    # All micro-batches at once: under ZeRO-3 the reference gathers its weights once per global step.
    watch.enter("reference")
    targets = job.targets(batches)
    total = sum(job.size(batch) for batch in batches)
    # Collected on the device: the host reads them only if the step fails, so that it never waits for a GPU here.
    finite: list[Tensor] = []
    for number, (batch, target) in enumerate(zip(batches, targets, strict=True), start=1):
        watch.enter("policy forward")
        log_probs, aux_loss = policy.score(batch)
        outcome = job.outcome(batch, log_probs, target)
        loss = outcome.losses.mean() + aux_loss
        finite.append(log_probs.detach().isfinite().all() & loss.detach().isfinite())
        watch.enter("backward")
        # Shares of the step's mean: micro-batches of a token budget differ in size.
        policy.backward(loss * job.size(batch) / total, last=number == len(batches))
        watch.enter("optimizer step")
        try:
            # DeepSpeed changes weights only after the last micro-batch, which `backward` has announced.
            policy.step()
        except TrainingError as error:
            known = torch.stack(finite).tolist()
            raise TrainingError(str(error), agreed=error.agreed, finite=known) from error
        sums.add(outcome, aux_loss, batch.row_tokens)


@torch.no_grad()
def eval_step(policy: Policy, job: Job, batch: Batch, weights: Sequence[float], sums: MetricSums) -> None:
    """Add one batch's metrics to `sums`, without training; `weights` has a 1 for each example that counts, else a 0."""
    batch = batch.to_device(policy.world.device)
    (target,) = job.targets([batch])
    log_probs, aux_loss = policy.score(batch)
    outcome = job.outcome(batch, log_probs, target)
    weight = to_device(np.array(weights), policy.world.device)
    sums.add(outcome, aux_loss, batch.row_tokens if any(weights) else 0, job.item_weights(batch, weight))
