"""How many bytes a rank holds, item by item, and at most: what DeepSpeed 0.19 allocates under each choice.

ModelSizes, ZeroChoice, StepLoad, Machine -> RankMemory

P elements, N ranks, w bytes of an element (2 for bfloat16 and float16, 4 for float32). Adam's states are float32
whatever w is: master weights 4, first and second moment 8. A global step has three moments that can be the highest:

    scoring    the reference's forward                    states + gathered reference + its working set
    backward   the end of the policy's forward            states + gathered policy + buckets + activations + head
    update     gradients become float32 for the optimizer states + copies of the gradients

tests/distributed/test_plan.py holds the states and the update against live engines.
"""

from __future__ import annotations

import dataclasses

from minimind.plan.choice import Machine, StepLoad, ZeroChoice
from minimind.plan.sizes import ModelSizes

# Elements of the block of logits that exists at a time (objective/log_probs.py).
_LOGITS_BLOCK = 2**23
# Elements that stage 0 all-reduces at a time, flattened (DeepSpeed's MEMORY_OPT_ALLREDUCE_SIZE).
_STAGE_0_BUCKET = 500_000_000
# Bytes of an Adam state: first and second moment; with float32 master weights beside 16-bit ones.
_MOMENTS, _MASTER, _FLOAT32 = 8, 4, 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class RankMemory:
    """Bytes of one rank.

    Attributes:
        parameters, gradients, optimizer: the policy's states on the device, all through a step.
        reference: the reference's shard on the device.
        update: copies of the gradients while the optimizer steps.
        gathered: parameters that ZeRO-3 holds whole at a time. `scoring_gathered`: the reference's.
        buckets: gradients on their way between ranks. `kept_buckets`: they stay allocated all through a step;
            `buckets_at_update`: until the gradients are float32.
        activations: kept for backward. `head`: what the output head needs beside them.
        scoring: working set of the reference's forward, which keeps nothing.
        host: main memory. `disk`: NVMe.
    """

    parameters: int = 0
    gradients: int = 0
    optimizer: int = 0
    reference: int = 0
    update: int = 0
    gathered: int = 0
    scoring_gathered: int = 0
    buckets: int = 0
    kept_buckets: bool = False
    buckets_at_update: bool = False
    activations: int = 0
    head: int = 0
    scoring: int = 0
    host: int = 0
    disk: int = 0

    @property
    def states(self) -> int:
        return self.parameters + self.gradients + self.optimizer + self.reference

    @property
    def peak(self) -> int:
        """Most bytes on the device at a time."""
        kept = self.buckets if self.kept_buckets else 0
        at_update = self.buckets if self.buckets_at_update else kept
        backward = self.gathered + self.buckets + self.activations + self.head
        return self.states + max(backward, self.update + at_update, self.scoring + self.scoring_gathered + kept)


def rank_memory(
    sizes: ModelSizes, choice: ZeroChoice, reference: ZeroChoice, load: StepLoad, machine: Machine
) -> RankMemory:
    """Memory of a rank; `reference` is how the reference is sharded, always stage 3."""
    policy = _sharded(sizes, choice, load, machine.ranks) if choice.stage == 3 else _whole(sizes, choice, load, machine)
    shard, gathered, in_host = _reference(sizes, reference, load, machine.ranks)
    working = load.width * load.tokens * load.reference_batches * (3 * sizes.hidden + 3 * sizes.inner + 2 * sizes.query)
    if machine.on_cpu:
        # One memory: what is "offloaded" takes it as well. What is never written to does not.
        bucket = min(policy.buckets, load.width * sizes.parameters)
        policy = dataclasses.replace(policy, buckets=bucket, optimizer=policy.optimizer + policy.host, host=0)
        if choice.stage in (1, 2) and load.width < _FLOAT32:
            # Float32 gradients keep their place from step to step (engine/shortcuts.py).
            states = policy.gradients + policy.update
            policy = dataclasses.replace(policy, gradients=states, update=0, buckets_at_update=False)
        shard, in_host = shard + in_host, 0
    return dataclasses.replace(
        policy,
        reference=shard,
        scoring_gathered=gathered,
        scoring=working if load.reference else 0,
        host=policy.host + in_host,
        activations=activation_bytes(sizes, load),
        head=_head(sizes, load),
    )


def activation_bytes(sizes: ModelSizes, load: StepLoad) -> int:
    """What autograd keeps of a forward over T tokens.

    Per block and token: the inputs of both norms and of the projections (4 H), of the feed-forward part (4 inner), of
    rotary positions and attention with what it expands and concatenates (9 query channels). Checkpointed, only each
    block's input stays, and one block is whole while it is recomputed. An upper estimate: operations fused for the
    CPU keep about two thirds of it.
    """
    block = 4 * sizes.hidden + 4 * sizes.inner + 9 * sizes.query + 3 * sizes.routed * sizes.hidden
    if sizes.normed_heads:
        block += 2 * (sizes.query + sizes.key)
    if sizes.float32_norms and load.width == 2:
        block += 4 * sizes.hidden
    per_token = sizes.layers * sizes.hidden + block if load.checkpointing else sizes.layers * block
    return load.width * load.tokens * per_token


def _head(sizes: ModelSizes, load: StepLoad) -> int:
    """Hidden states of the targets with their gradient, one block of logits, the gradient of the head's weight."""
    hidden = load.tokens * sizes.hidden * (load.width + _FLOAT32)
    logits = min(_LOGITS_BLOCK, load.tokens * sizes.vocab) * (_FLOAT32 + 2 * load.width)
    return hidden + logits + load.width * sizes.vocab * sizes.hidden


def _whole(sizes: ModelSizes, choice: ZeroChoice, load: StepLoad, machine: Machine) -> RankMemory:
    """Stages 0 to 2: every rank has all parameters."""
    total, width = sizes.parameters, load.width
    owned = -(-total // machine.ranks)
    if choice.stage == 0:
        masters = 0 if width == _FLOAT32 else _MASTER
        gradients, optimizer = width * total, (masters + _MOMENTS) * total
        update, buckets, host = masters * total, width * min(_STAGE_0_BUCKET, total), 0
    else:
        # Stage 1 accumulates whole gradients and shards them at the last micro-batch.
        gradients = width * (total if choice.stage == 1 and load.micro_batches > 1 else owned)
        optimizer = (_MASTER + _MOMENTS) * owned
        # The gradients in float32, flat (engine/shortcuts.py).
        update = _FLOAT32 * owned
        buckets = width * min(choice.bucket, total) * (2 if choice.overlaps else 1)
        host = 0
    if choice.stage > 0 and choice.optimizer_on != "device":
        # Master weights, moments, float32 gradients, a 16-bit copy of the weights on their way back, and the
        # gradients that micro-batches accumulate.
        accumulated = width if load.micro_batches > 1 else 0
        host = optimizer + (_FLOAT32 + width + accumulated) * owned + width * sizes.largest
        gradients = gradients if choice.stage == 1 and load.micro_batches > 1 else 0
        optimizer, update, buckets = 0, 0, buckets + width * sizes.largest
    return RankMemory(
        parameters=width * total,
        gradients=gradients,
        optimizer=optimizer,
        update=update,
        buckets=buckets,
        # 16-bit gradients become float32 where the last backward ends, before DeepSpeed lets its buckets go.
        buckets_at_update=choice.stage > 0 and width < _FLOAT32 and update > 0,
        host=host,
    )


def _sharded(sizes: ModelSizes, choice: ZeroChoice, load: StepLoad, ranks: int) -> RankMemory:
    """Stage 3: every rank has its shard, small tensors whole, and what it has gathered."""
    width, owned = load.width, sizes.shard(ranks)
    whole = width * sizes.small(choice.keep_below)
    group = min(owned, choice.sub_group)
    parameters, gradients, optimizer = width * owned, width * owned, (_MASTER + _MOMENTS) * owned
    update = (width + (0 if width == _FLOAT32 else _FLOAT32)) * group
    host = disk = 0
    if choice.optimizer_on != "device":
        # The float32 gradients go along.
        states = optimizer + _FLOAT32 * owned
        host = gradients + (states if choice.optimizer_on == "cpu" else choice.optimizer_buffers * _FLOAT32 * group)
        disk = states if choice.optimizer_on == "nvme" else 0
        gradients = optimizer = update = 0
    if choice.parameters_on == "cpu":
        host, parameters = host + parameters, 0
    elif choice.parameters_on == "nvme":
        disk += parameters
        host += width * (min(choice.max_in_cpu, owned) + choice.swap_buffers * choice.swap_buffer)
        parameters = 0
    if choice.secondary_ranks > 1:
        parameters += width * -(-sizes.parameters // min(choice.secondary_ranks, ranks))
    live = min(sizes.parameters, choice.max_live, kept_for_backward(sizes, choice, load) + _ahead(sizes, choice))
    # Gradients are put in order once more to be scattered.
    return RankMemory(
        parameters=parameters + whole,
        gradients=gradients,
        optimizer=optimizer,
        update=update,
        buckets=width * 2 * min(choice.bucket, sizes.parameters),
        host=host,
        disk=disk,
        gathered=width * live,
        kept_buckets=True,
    )


def kept_for_backward(sizes: ModelSizes, choice: ZeroChoice, load: StepLoad) -> int:
    """Elements that ZeRO-3 does not let go at the end of forward, because backward uses them soon.

    A tensor is kept when less than `reuse_distance` elements are used in between: those after it twice, and three
    times where blocks are recomputed.
    """
    return min(sizes.parameters, choice.reuse_distance // (3 if load.checkpointing else 2))


def _ahead(sizes: ModelSizes, choice: ZeroChoice) -> int:
    """Elements of what is used now and of what is gathered ahead."""
    return choice.prefetch + sizes.largest


def _reference(sizes: ModelSizes, choice: ZeroChoice, load: StepLoad, ranks: int) -> tuple[int, int, int]:
    """Bytes of the reference: its shard on the device, what it gathers at a time, its shard in main memory."""
    if not load.reference:
        return 0, 0, 0
    shard, whole = load.width * sizes.shard(ranks), load.width * sizes.small(choice.keep_below)
    # Tied embeddings are used first and last, so they stay.
    gathered = load.width * min(sizes.parameters, _ahead(sizes, choice) + sizes.largest)
    if choice.parameters_on == "device":
        return shard + whole, gathered, 0
    return whole, gathered, shard if choice.parameters_on == "cpu" else 0
