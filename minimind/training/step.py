"""One global step, for any job.

    micro-batches -> job.targets -> policy's log-probs -> job.outcome -> backward for each -> optimizer step

The loss of a global step is the mean over its items on all ranks, however they are split into micro-batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from minimind.data.packs import Batch
from minimind.engine.policy import Policy
from minimind.errors import TrainingError
from minimind.model.device_transfer import to_device
from minimind.training.jobs.job import BatchOutcome, Job
from minimind.training.metrics import MetricSums


class Phases(Protocol):
    """Hears of each phase of a step when it begins: the watch, or what measures phases and tells it (`Speed`)."""

    def enter(self, phase: str, step: int | None = None) -> None: ...


def train_step(
    policy: Policy,
    job: Job,
    batches: Sequence[Batch],
    sums: MetricSums,
    watch: Phases,
    distributions: bool = False,
    met: Callable[[Batch, BatchOutcome], object] | None = None,
) -> None:
    """Train on one rank's micro-batches of a global step, and add their metrics to `sums`.

    Args:
        watch: hears of the phases.
        distributions: also compute what `Policy.score` adds, for the metrics of logged steps.
        met: called with each micro-batch and its outcome; it must not wait for the device.

    Raises:
        TrainingError: on every rank, before any weight changes, if the gradient is not finite. Its attribute `finite`
            says for each of this rank's micro-batches whether its log-probs and losses were finite.
    """
    batches = [batch.to_device(policy.world.device) for batch in batches]
    # All micro-batches at once: under ZeRO-3 the reference gathers its weights once per global step.
    watch.enter("reference")
    targets = job.targets(batches)
    scored: tuple[Tensor, Tensor] | None = None
    if job.whole_batch:
        watch.enter("policy forward")
        targets, scored = _shared(policy, job, batches, targets, distributions)
    weights = job.weights(batches)
    # Collected on the device: the host reads them only if the step fails, so that it never waits for a GPU here.
    finite: list[Tensor] = []
    for number, (batch, target, weight) in enumerate(zip(batches, targets, weights, strict=True), start=1):
        watch.enter("policy forward")
        log_probs, aux_loss = scored if scored is not None else policy.score(job.trained(batch), distributions)
        outcome = job.outcome(batch, log_probs, target)
        loss = outcome.losses.mean() + aux_loss
        finite.append(log_probs.detach().isfinite().all() & loss.detach().isfinite())
        watch.enter("backward")
        policy.backward(loss * weight, last=number == len(batches))
        watch.enter("optimizer step")
        try:
            # DeepSpeed changes weights only after the last micro-batch, which `backward` has announced.
            policy.step()
        except TrainingError as error:
            known = torch.stack(finite).tolist()
            raise TrainingError(str(error), agreed=error.agreed, finite=known) from error
        sums.add(outcome, aux_loss, batch.row_tokens)
        if met is not None:
            met(batch, outcome)


def _shared(
    policy: Policy, job: Job, batches: Sequence[Batch], targets: Sequence[Any], distributions: bool
) -> tuple[Sequence[Any], tuple[Tensor, Tensor] | None]:
    """Targets with what the whole global batch gives to each item, and the scores of a single micro-batch."""
    ahead = [job.ahead(batch) for batch in batches]
    # A single micro-batch is computed once: its log-probs are those of the whole batch on this rank.
    once = len(batches) == 1 and ahead[0] is job.trained(batches[0])
    scored = policy.score(ahead[0], distributions) if once else None
    seen = [scored[0].detach()] if scored is not None else policy.look_ahead(ahead)
    return job.share(batches, seen, targets), scored


@torch.no_grad()
def eval_step(policy: Policy, job: Job, batch: Batch, weights: Sequence[float], sums: MetricSums) -> None:
    """Add one batch's metrics to `sums`, without training; `weights` has a 1 for each example that counts, else a 0."""
    batch = batch.to_device(policy.world.device)
    # The reference under ZeRO-3 gathers its weights for each batch: all ranks have equally many (`eval_batches`).
    (target,) = job.targets([batch])
    log_probs, aux_loss = policy.score(job.trained(batch), distributions=bool(job.token_metrics))
    outcome = job.outcome(batch, log_probs, target)
    # A batch that only fills up a rank has weights of 0; it is computed all the same, for the collectives in it.
    weight = to_device(np.array(weights), policy.world.device)
    sums.add(outcome, aux_loss, batch.row_tokens if any(weights) else 0, job.item_weights(batch, weight))


@torch.no_grad()
def eval_together(
    policy: Policy,
    job: Job,
    batches: Iterable[tuple[Batch, Sequence[float]]],
    sums: MetricSums,
    on_progress: Callable[[], object],
) -> None:
    """Add the metrics of held-out data as one global batch, for a job whose items' losses depend on each other.

    Args:
        batches: this rank's batches with the weights of their examples; on every rank the same number.
        on_progress: called after each batch.
    """
    device = policy.world.device
    kept: list[tuple[Batch, Tensor, Tensor, Any, Tensor]] = []
    weights: list[Sequence[float]] = []
    for batch, weight in batches:
        batch = batch.to_device(device)
        (target,) = job.targets([batch])
        trained, ahead = job.trained(batch), job.ahead(batch)
        log_probs, aux_loss = policy.score(trained, distributions=bool(job.token_metrics))
        seen = log_probs if ahead is trained else policy.score(ahead)[0]
        # The tokens of all batches would fill a GPU.
        kept.append((batch.without_tokens(), log_probs, seen, target, aux_loss))
        weights.append(weight)
        on_progress()
    # Two passes: what items share, such as a mean over all of them, is known only after the last batch.
    light, scored, known, targets, aux_losses = zip(*kept, strict=True)
    shared = job.share(light, known, targets, weights)
    for batch, log_probs, target, aux_loss, weight in zip(light, scored, shared, aux_losses, weights, strict=True):
        outcome = job.outcome(batch, log_probs, target)
        counted = job.item_weights(batch, to_device(np.array(weight), device))
        sums.add(outcome, aux_loss, batch.row_tokens if any(weight) else 0, counted)
