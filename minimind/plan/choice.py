"""What is chosen, and where it runs: a way of sharding (a DeepSpeed file), a machine, a step.

DeepSpeed's file -> ZeroChoice
flags            -> StepLoad
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from minimind.config import JobConfig

# The reference scores the micro-batches of a step together, up to so many tokens (engine/reference.py).
REFERENCE_TOKENS = 2**16
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Machine:
    """Where a run takes place.

    Attributes:
        nodes, ranks_per_node: how many machines, and ranks (GPUs) on each.
        device_memory: bytes that a rank's device has.
        host_memory: bytes of main memory of a node; 0 if unknown.
        on_cpu: ranks compute on the CPU, so device and host memory are one, and memory never written to is not taken.
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
    """What one rank does in a global step.

    Attributes:
        dtype: "bfloat16", "float16" or "float32".
        tokens: T, tokens of a micro-batch at most: rows of full length that share nothing.
        micro_batches: of a global step, at most.
        reference: a live reference is there; a cached one is gone before training.
        checkpointing: activations within blocks are recomputed.
    """

    dtype: str
    tokens: int
    micro_batches: int
    reference: bool = True
    checkpointing: bool = False

    @classmethod
    def of(cls, config: JobConfig) -> StepLoad:
        optimisation = config.optimisation
        pair = 2 * config.data.max_seq_len
        pairs = optimisation.batch_size * optimisation.accumulation_steps
        tokens, micro_batches = optimisation.batch_size * pair, optimisation.accumulation_steps
        if optimisation.micro_batch_tokens is not None:
            tokens = max(optimisation.micro_batch_tokens, pair)
            micro_batches = min(pairs, -(-pairs * pair // tokens))
            tokens = min(tokens, pairs * pair)
        return cls(
            dtype=optimisation.dtype,
            tokens=tokens,
            micro_batches=micro_batches,
            reference=config.engine.reference == "live",
            checkpointing=config.engine.gradient_checkpointing,
        )

    @property
    def width(self) -> int:
        """Bytes of an element of weights, gradients and activations."""
        return BYTES[self.dtype]

    @property
    def reference_batches(self) -> int:
        """Micro-batches of one forward of the reference."""
        return min(self.micro_batches, max(1, REFERENCE_TOKENS // self.tokens))


@dataclasses.dataclass(frozen=True, kw_only=True)
class ZeroChoice:
    """What a DeepSpeed file's `zero_optimization` says about memory and communication; sizes in elements.

    Attributes:
        stage: ZeRO stage.
        optimizer_on, parameters_on: "device", "cpu" or "nvme".
        bucket: gradients reduced at a time. `overlaps`: a second bucket fills meanwhile (stages 1 and 2).
        reduces_to_owner: stages 1 and 2 send a gradient to the rank that owns it, instead of all of it to all.
        prefetch, keep_below, reuse_distance, max_live: how ZeRO-3 gathers parameters ahead, keeps small ones whole,
            keeps those that are used again soon, and how many it holds at most.
        sub_group: parameters that ZeRO-3 updates at a time.
        secondary_ranks: ranks of a node that share a second copy of the shards (ZeRO++); 1: none.
        int8_weights, int4_gradients: what is sent is quantised (ZeRO++).
        optimizer_buffers: sub-groups of an optimizer on NVMe that are in main memory, a state each.
        swap_buffers, swap_buffer, max_in_cpu: of parameters on NVMe.
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
        """From a DeepSpeed configuration; keys that are missing or "auto" have DeepSpeed's defaults."""
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
            optimizer_on=_place(optimizer),
            parameters_on=_place(parameters),
            reduces_to_owner=not zero.get("use_multi_rank_bucket_allreduce", True),
            **given,
        )

    @property
    def offload(self) -> str:
        """What leaves the device, as a user would say it."""
        what = {(True, True): "all", (True, False): "optimizer", (False, True): "parameters"}
        gone = what.get((_off(self.optimizer_on), _off(self.parameters_on)))
        return "-" if gone is None else f"{gone} to {'NVMe' if self.offload_level == 3 else 'CPU'}"

    @property
    def offload_level(self) -> int:
        """How far states go: 0 nothing leaves the device, 1 the optimizer, 2 parameters as well, 3 to NVMe."""
        if "nvme" in (self.optimizer_on, self.parameters_on):
            return 3
        return int(_off(self.optimizer_on)) + int(_off(self.parameters_on))

    @property
    def changes_numbers(self) -> bool:
        return self.int8_weights or self.int4_gradients


def _place(section: Mapping[str, Any]) -> str:
    place = section.get("device", "none")
    return "device" if place == "none" else str(place)


def _off(place: str) -> bool:
    return place != "device"
