"""The inputs of a plan besides the model: the way of sharding, the machine, the size of a step.

DeepSpeed file                         -> ZeroChoice
flags, and the file of --sample_prompts -> StepLoad
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from minimind.config import JobConfig
from minimind.data.prompt_lines import written_prompts
from minimind.errors import DataError
from minimind.objective.reference_update import ReferenceUpdate, parse_reference_update

# Largest number of tokens of one forward of the reference; equal to that of engine/reference.py.
REFERENCE_TOKENS = 2**16
# Bytes of an element, by dtype.
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Machine:
    """The machine of a run.

    Attributes:
        nodes, ranks_per_node: number of nodes, and of ranks (GPUs) on each.
        device_memory: bytes of memory of a rank's device.
        host_memory: bytes of main memory of a node; 0 if unknown.
        on_cpu: the ranks compute on the CPU. Device and host memory are then the same, and allocated memory counts only
            once it is written to.
    """

    nodes: int = 1
    ranks_per_node: int = 1
    device_memory: int
    host_memory: int = 0
    on_cpu: bool = False

    @property
    def ranks(self) -> int:
        return self.nodes * self.ranks_per_node


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepLoad:
    """The work of one rank in a global step.

    Attributes:
        dtype: "bfloat16", "float16" or "float32".
        tokens: T, largest number of tokens of a micro-batch: rows of full length without a shared prefix.
        micro_batches: largest number of micro-batches of a global step.
        reference: the reference is in memory during training; a cached one is not.
        checkpointing: the backward pass recomputes the activations within blocks.
        update: how the reference follows the policy; None: it stays.
        optimizer: as in --optimizer; others of a DeepSpeed file count as AdamW.
        sample_rows, sample_length: largest number of prompts in a batch of a generation, and of tokens of a prompt with
            its answer; 0 without --sample_prompts.
    """

    dtype: str
    tokens: int
    micro_batches: int
    reference: bool = True
    checkpointing: bool = False
    update: ReferenceUpdate | None = None
    optimizer: str = "adamw"
    sample_rows: int = 0
    sample_length: int = 0

    @classmethod
    def of(cls, config: JobConfig) -> StepLoad:
        """The load that a job's configuration describes."""
        optimisation, moving = config.optimisation, config.engine.reference_update
        pair = config.rows * config.data.max_seq_len
        pairs = optimisation.batch_size * optimisation.accumulation_steps
        tokens, micro_batches = optimisation.batch_size * pair, optimisation.accumulation_steps
        if optimisation.micro_batch_tokens is not None:
            # A pair longer than the limit gets a micro-batch of its own, and a step has no more tokens than its pairs.
            tokens = max(optimisation.micro_batch_tokens, pair)
            micro_batches = min(pairs, -(-pairs * pair // tokens))
            tokens = min(tokens, pairs * pair)
        samples, rows = config.samples, config.rows * optimisation.batch_size
        sample_rows = min(rows, samples.number or rows) if samples.is_on else 0
        return cls(
            dtype=optimisation.dtype,
            tokens=tokens,
            micro_batches=micro_batches,
            reference=config.engine.reference == "live",
            checkpointing=config.engine.gradient_checkpointing,
            update=parse_reference_update(moving) if moving is not None else None,
            optimizer=optimisation.optimizer,
            sample_rows=sample_rows,
            sample_length=_prompt_length(config) + samples.sample_tokens if sample_rows else 0,
        )

    @property
    def width(self) -> int:
        """Bytes of an element of weights, gradients and activations."""
        return BYTES[self.dtype]

    @property
    def reference_batches(self) -> int:
        """Number of micro-batches that one forward of the reference scores."""
        return min(self.micro_batches, max(1, REFERENCE_TOKENS // self.tokens))


def _prompt_length(config: JobConfig) -> int:
    """Tokens of the longest prompt that is sampled, about.

    Held-out rows have at most --max_seq_len. Those of a file may be longer; a token is about a character, as a rule
    several. A file that cannot be read counts for nothing: a run refuses it, a plan may be made elsewhere.
    """
    samples, length = config.samples, config.data.max_seq_len
    if samples.number is None and samples.sample_prompts:
        with contextlib.suppress(DataError):
            prompts = written_prompts(Path(samples.sample_prompts))
            return max([length, *(sum(len(turn["content"]) for turn in one.turns) for one in prompts)])
    return length


@dataclasses.dataclass(frozen=True, kw_only=True)
class ZeroChoice:
    """The values of a DeepSpeed file's `zero_optimization` that matter for memory and communication. Sizes in elements.

    Attributes:
        stage: ZeRO stage.
        optimizer_on, parameters_on: "device", "cpu" or "nvme".
        bucket: size of a bucket of gradients, which are reduced together.
        overlaps: stages 1 and 2 fill a second bucket while the first is reduced.
        reduces_to_owner: stages 1 and 2 reduce each gradient to the rank that owns it; otherwise they all-reduce.
        prefetch: ZeRO-3 gathers parameters up to this size ahead of their use.
        keep_below: ZeRO-3 does not shard tensors up to this size.
        reuse_distance: ZeRO-3 does not release a parameter that is used again within this many elements.
        max_live: largest number of gathered elements.
        sub_group: number of parameters that ZeRO-3 updates at a time.
        secondary_ranks: ranks that share a second copy of the shards within a node (ZeRO++); 1: no such copy.
        int8_weights, int4_gradients: communication is quantised (ZeRO++).
        optimizer_buffers: number of buffers in main memory for an optimizer on NVMe; each holds one state of one
            sub-group.
        swap_buffers, swap_buffer, max_in_cpu: for parameters on NVMe: number and size of the buffers in main memory,
            and number of elements that stay in main memory.
    """

    stage: int
    optimizer_on: str = "device"
    parameters_on: str = "device"
    bucket: int = 500_000_000
    overlaps: bool = False
    reduces_to_owner: bool = False
    prefetch: int = 50_000_000
    keep_below: int = 100_000
    reuse_distance: int = 1_000_000_000
    max_live: int = 1_000_000_000
    sub_group: int = 1_000_000_000
    secondary_ranks: int = 1
    int8_weights: bool = False
    int4_gradients: bool = False
    optimizer_buffers: int = 4
    swap_buffers: int = 5
    swap_buffer: int = 100_000_000
    max_in_cpu: int = 1_000_000_000

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> ZeroChoice:
        """The choice of a DeepSpeed configuration. Missing keys and "auto" get DeepSpeed's defaults."""
        zero = {k: v for k, v in values.get("zero_optimization", {}).items() if v != "auto" and v is not None}
        keys = {
            "bucket": "reduce_bucket_size",
            "overlaps": "overlap_comm",
            "prefetch": "stage3_prefetch_bucket_size",
            "keep_below": "stage3_param_persistence_threshold",
            "reuse_distance": "stage3_max_reuse_distance",
            "max_live": "stage3_max_live_parameters",
            "sub_group": "sub_group_size",
            "secondary_ranks": "zero_hpz_partition_size",
            "int8_weights": "zero_quantized_weights",
            "int4_gradients": "zero_quantized_gradients",
        }
        given = {name: zero[key] for name, key in keys.items() if key in zero}
        parameters, optimizer = zero.get("offload_param", {}), zero.get("offload_optimizer", {})
        swaps = {"swap_buffers": "buffer_count", "swap_buffer": "buffer_size", "max_in_cpu": "max_in_cpu"}
        given |= {name: parameters[key] for name, key in swaps.items() if key in parameters}
        if "buffer_count" in optimizer:
            given["optimizer_buffers"] = optimizer["buffer_count"]
        return cls(
            stage=zero.get("stage", 0),
            optimizer_on=_device_of(optimizer),
            parameters_on=_device_of(parameters),
            reduces_to_owner=not zero.get("use_multi_rank_bucket_allreduce", True),
            **given,
        )

    @property
    def offload(self) -> str:
        """The offloaded states and their destination, for the table; "-" without offload."""
        names = {(True, True): "all", (True, False): "optimizer", (False, True): "parameters"}
        offloaded = names.get((_is_offloaded(self.optimizer_on), _is_offloaded(self.parameters_on)))
        return "-" if offloaded is None else f"{offloaded} to {'NVMe' if self.offload_level == 3 else 'CPU'}"

    @property
    def offload_level(self) -> int:
        """Degree of offload: 0 none, 1 the optimizer, 2 the parameters as well, 3 to NVMe."""
        if "nvme" in (self.optimizer_on, self.parameters_on):
            return 3
        return int(_is_offloaded(self.optimizer_on)) + int(_is_offloaded(self.parameters_on))

    @property
    def changes_numbers(self) -> bool:
        """Whether quantised communication changes the results."""
        return self.int8_weights or self.int4_gradients


def _device_of(section: Mapping[str, Any]) -> str:
    device = section.get("device", "none")
    return "device" if device == "none" else str(device)


def _is_offloaded(device: str) -> bool:
    return device != "device"
