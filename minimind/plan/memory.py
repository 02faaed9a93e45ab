"""Memory of a rank: bytes per item, and the peak. It follows the allocations of DeepSpeed 0.19.

    ModelSizes, ZeroChoice, StepLoad, Machine -> RankMemory

P elements, N ranks, w bytes of an element (2 for bfloat16 and float16, 4 for float32). Master weights and Adam's
moments are float32 for every w: 4 and 8 bytes per element. Other optimizers have other states (`_state_bytes`). The
peak of a global step is in one of these phases:

    scoring    forward of the reference                   states + gathered reference + its working set
    backward   end of the policy's forward                states + gathered policy + buckets + activations + head
    update     gradients are cast to float32              states + copies of the gradients
    sampling   between steps, with --sample_prompts       states + gathered policy + cache of keys and values

tests/distributed/test_plan.py compares states and update with real engines.
"""

from __future__ import annotations

import dataclasses

from minimind.plan.activations import activation_bytes, forward_bytes, head_bytes, logits_bytes, sampling_bytes
from minimind.plan.choice import Machine, StepLoad, ZeroChoice
from minimind.plan.sizes import ModelSizes

# Elements that stage 0 flattens and all-reduces at a time (DeepSpeed's MEMORY_OPT_ALLREDUCE_SIZE).
_STAGE_0_BUCKET = 500_000_000
# Bytes per element: both moments of Adam, float32 master weights of 16-bit weights, any float32 value.
_MOMENTS, _MASTER, _FLOAT32 = 8, 4, 4
# 8-bit moments: two bytes per element, and two float32 scales for each block of 256 elements.
_MOMENTS_8BIT, _BLOCK_8BIT = 2, 256


@dataclasses.dataclass(frozen=True, kw_only=True)
class RankMemory:
    """Bytes of one rank.

    Attributes:
        parameters, gradients, optimizer: the policy's states on the device, during the whole step.
        reference: the reference's shard on the device, and its float32 average if it follows the policy.
        update: copies of the gradients during the optimizer step.
        first_step: more such copies in the first step, in which DeepSpeed's optimizer and its patches are compared.
        gathered, scoring_gathered: parameters of the policy and of the reference that ZeRO-3 has gathered, at most.
        buckets: buckets of gradients for communication.
        kept_buckets: the buckets stay allocated during the whole step.
        buckets_at_update: the buckets are still allocated while gradients are cast to float32.
        activations: saved for the backward pass.
        head: memory of the output head in addition to the activations.
        scoring: working set of the reference's forward, which saves no activations.
        moving: while the reference is moved, float32 copies of the largest tensor.
        sampling: cache of keys and values and working set of a generation (--sample_prompts).
        host: main memory.
        disk: NVMe.
    """

    parameters: int = 0
    gradients: int = 0
    optimizer: int = 0
    reference: int = 0
    update: int = 0
    first_step: int = 0
    gathered: int = 0
    scoring_gathered: int = 0
    buckets: int = 0
    kept_buckets: bool = False
    buckets_at_update: bool = False
    activations: int = 0
    head: int = 0
    scoring: int = 0
    moving: int = 0
    sampling: int = 0
    host: int = 0
    disk: int = 0

    @property
    def states(self) -> int:
        """Bytes on the device during the whole step."""
        return self.parameters + self.gradients + self.optimizer + self.reference

    @property
    def peak(self) -> int:
        """Largest number of bytes on the device at a time."""
        kept = self.buckets if self.kept_buckets else 0
        at_update = self.buckets if self.buckets_at_update else kept
        backward = self.gathered + self.buckets + self.activations + self.head
        update = self.update + max(at_update, self.first_step + kept)
        scoring = self.scoring + self.scoring_gathered
        sampling = self.sampling + self.gathered if self.sampling else 0
        return self.states + max(backward, update, max(scoring, self.moving, sampling) + kept)


def rank_memory(
    sizes: ModelSizes,
    choice: ZeroChoice,
    reference: ZeroChoice,
    load: StepLoad,
    machine: Machine,
    other: ModelSizes | None = None,
) -> RankMemory:
    """Memory of a rank.

    Args:
        choice: how the policy is sharded.
        reference: how the reference is sharded, always stage 3.
        other: sizes of a reference that is another model; None: it is the policy's.
    """
    stage_3 = choice.stage == 3
    policy = _stage_3(sizes, choice, load, machine.ranks) if stage_3 else _stage_0_to_2(sizes, choice, load, machine)
    scorer = other or sizes
    # The reference of a policy with adapters is its own model without them.
    own = bool(sizes.adapters) and other is None
    shard, gathered, in_host = (0, policy.gathered, 0) if own else _reference(scorer, reference, load, machine.ranks)
    scored = load.tokens * load.reference_batches
    working = forward_bytes(scorer, scored, load.width)
    logits = logits_bytes(scorer, scored, machine.on_cpu)
    if machine.on_cpu:
        # Offloaded states take the same memory here. The operating system gives no memory to the part of a bucket that
        # is never written to.
        bucket = min(policy.buckets, load.width * sizes.trained)
        policy = dataclasses.replace(policy, buckets=bucket, optimizer=policy.optimizer + policy.host, host=0)
        if choice.stage in (1, 2) and load.width < _FLOAT32:
            # The buffer of float32 gradients is reused in every step (engine/patches/optimizer.py).
            states = policy.gradients + policy.update
            policy = dataclasses.replace(policy, gradients=states, update=0, buckets_at_update=False)
            if machine.ranks == 1:
                # In the first step a copy of each gradient is compared with the reduced one.
                policy = dataclasses.replace(policy, buckets=policy.buckets + load.width * sizes.trained)
        shard, in_host = shard + in_host, 0
    return dataclasses.replace(
        policy,
        reference=shard,
        scoring_gathered=gathered,
        scoring=working + logits if load.reference else 0,
        # Below stage 3 a parameter is gathered as a sum over the ranks, and this rank's share is copied out of it.
        moving=_FLOAT32 * sizes.largest if load.update is not None and 0 < choice.stage < 3 else 0,
        host=policy.host + in_host,
        # The layer in use is unpacked.
        activations=activation_bytes(sizes, load) + load.width * max(sizes.packed, default=0),
        head=head_bytes(sizes, load, machine.on_cpu),
        sampling=sampling_bytes(sizes, load),
    )


def _stage_0_to_2(sizes: ModelSizes, choice: ZeroChoice, load: StepLoad, machine: Machine) -> RankMemory:
    """Stages 0 to 2: every rank holds all parameters."""
    total, width = sizes.trained, load.width
    owned = -(-total // machine.ranks)
    first_step = 0
    if choice.stage == 0:
        masters = 0 if width == _FLOAT32 else _MASTER
        gradients, optimizer = width * total, masters * total + _state_bytes(sizes, choice, load)
        update, buckets, host = masters * total, width * min(_STAGE_0_BUCKET, total), 0
    else:
        # Stage 1 accumulates the gradients of all parameters and shards them at the last micro-batch only.
        gradients = width * (total if choice.stage == 1 and load.micro_batches > 1 else owned)
        optimizer = _MASTER * owned + _share(_state_bytes(sizes, choice, load), owned, total)
        # The rank's flat gradient in float32 (engine/patches/optimizer.py); twice in the first step, from DeepSpeed and
        # from the patch.
        update = _FLOAT32 * owned
        first_step = update if width < _FLOAT32 else 0
        # `resolve_overlap` in engine/ds_zero.py.
        overlaps = choice.overlaps and (machine.ranks > 1 or choice.optimizer_on != "device")
        buckets = width * min(choice.bucket, total) * (2 if overlaps else 1)
        host = 0
    if choice.stage > 0 and choice.optimizer_on != "device":
        # In main memory: master weights, moments, float32 gradients, the 16-bit copy in which updated weights return to
        # the device, and gradients accumulated over micro-batches.
        accumulated = width if load.micro_batches > 1 else 0
        host = optimizer + (_FLOAT32 + width + accumulated) * owned + width * sizes.largest
        gradients = gradients if choice.stage == 1 and load.micro_batches > 1 else 0
        optimizer, update, first_step, buckets = 0, 0, 0, buckets + width * sizes.largest
    return RankMemory(
        parameters=width * sizes.parameters - sizes.saved(width),
        gradients=gradients,
        optimizer=optimizer,
        update=update,
        first_step=first_step,
        buckets=buckets,
        # 16-bit gradients are cast to float32 at the end of the last backward, before DeepSpeed frees its buckets.
        buckets_at_update=choice.stage > 0 and width < _FLOAT32 and update > 0,
        host=host,
    )


def _stage_3(sizes: ModelSizes, choice: ZeroChoice, load: StepLoad, ranks: int) -> RankMemory:
    """Stage 3: every rank holds its shard, the small tensors, and gathered parameters."""
    width, owned = load.width, sizes.shard(ranks)
    whole = width * sizes.small(choice.keep_below)
    parameters, owned = width * owned - sizes.saved(width, ranks), sizes.trained_shard(ranks)
    group = min(owned, choice.sub_group)
    gradients = width * owned
    optimizer = _MASTER * owned + _share(_state_bytes(sizes, choice, load), owned, sizes.trained)
    update = (width + (0 if width == _FLOAT32 else _FLOAT32)) * group
    host = disk = 0
    if choice.optimizer_on != "device":
        # The float32 gradients are offloaded together with the optimizer.
        states = optimizer + _FLOAT32 * owned
        host = gradients + (states if choice.optimizer_on == "cpu" else choice.optimizer_buffers * _FLOAT32 * group)
        disk = states if choice.optimizer_on == "nvme" else 0
        gradients = optimizer = update = 0
    if choice.parameters_on == "cpu":
        host, parameters = host + parameters, 0
    elif choice.parameters_on == "nvme":
        disk += parameters
        host += width * (min(choice.max_in_cpu, sizes.shard(ranks)) + choice.swap_buffers * choice.swap_buffer)
        parameters = 0
    if choice.secondary_ranks > 1:
        parameters += width * -(-sizes.parameters // min(choice.secondary_ranks, ranks))
    # A gathered element of a packed tensor is half a byte, but DeepSpeed's limits count elements of all kinds alike.
    live = min(sizes.parameters, choice.max_live, kept_for_backward(sizes, choice, load) + _in_use(sizes, choice))
    return RankMemory(
        parameters=parameters + whole,
        gradients=gradients,
        optimizer=optimizer,
        update=update,
        # Twice, because the reduce-scatter needs the gradients of a bucket in another order, in a second buffer.
        buckets=width * 2 * min(choice.bucket, sizes.trained),
        host=host,
        disk=disk,
        gathered=min(width * live, width * sizes.parameters - sizes.saved(width)),
        kept_buckets=True,
    )


def _state_bytes(sizes: ModelSizes, choice: ZeroChoice, load: StepLoad) -> int:
    """Bytes of the optimizer's states of all elements, without master weights.

    Muon has Adam's moments for what is no hidden matrix, and one momentum for the matrices, in the gradients' dtype;
    ZeRO 1 and 2 keep a second one, to which a step is written until it is known to be finite.
    """
    total = sizes.trained
    if load.optimizer == "adamw_8bit":
        return _MOMENTS_8BIT * total + 2 * _FLOAT32 * -(-total // _BLOCK_8BIT)
    if load.optimizer != "muon":
        return _MOMENTS * total
    offloads = choice.optimizer_on != "device"
    momentum = _FLOAT32 if offloads else load.width * (2 if choice.stage in (1, 2) else 1)
    return _MOMENTS * (total - sizes.matrices) + momentum * sizes.matrices


def _share(states: int, owned: int, total: int) -> int:
    """What a rank that owns so many of all elements has of their states, rounded up."""
    return -(-states * owned // total)


def kept_for_backward(sizes: ModelSizes, choice: ZeroChoice, load: StepLoad) -> int:
    """Number of elements that ZeRO-3 does not release at the end of the forward, because the backward uses them soon.

    A tensor is kept if fewer than `reuse_distance` elements are used before its next use. Between the two, the tensors
    after it are used twice (forward, backward), or three times with checkpointing.
    """
    if sizes.adapters:
        # Seen in 0.19.8: forwards without a backward, those of the reference, are in DeepSpeed's record of the order.
        return 0
    return min(sizes.parameters, choice.reuse_distance // (3 if load.checkpointing else 2))


def _in_use(sizes: ModelSizes, choice: ZeroChoice) -> int:
    """Number of elements in the tensor in use and in the tensors prefetched after it, at most."""
    return choice.prefetch + sizes.largest


def _reference(sizes: ModelSizes, choice: ZeroChoice, load: StepLoad, ranks: int) -> tuple[int, int, int]:
    """Bytes of the reference: on the device, gathered at a time, in main memory."""
    if not load.reference:
        return 0, 0, 0
    width = load.width
    if load.update is not None and not load.update.hard and width < _FLOAT32:
        width += _FLOAT32  # the average, beside the shard
    shard, whole = width * sizes.shard(ranks), load.width * sizes.small(choice.keep_below)
    # Tied embeddings are the first and the last weight in use, so they stay gathered during the whole forward.
    gathered = load.width * min(sizes.parameters, _in_use(sizes, choice) + sizes.largest)
    if choice.parameters_on == "device":
        return shard + whole, gathered, 0
    return whole, gathered, shard if choice.parameters_on == "cpu" else 0
