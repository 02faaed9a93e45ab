"""Flags for the engines: DeepSpeed files, reference, attention, recomputation and compilation."""

from __future__ import annotations

import dataclasses

from minimind.config.fields import flag


@dataclasses.dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """DeepSpeed files, and how forward and backward are computed. A path that was not given is None."""

    reference: str = flag(
        "live",
        "live: a frozen ZeRO-3 shard computes the reference's log-probs in every step; cached: the shard computes "
        "them once for all pairs and stores them in cache_dir; none: no reference, the value for losses that need none",
        choices=("live", "cached", "none"),
    )
    reference_update: str | None = flag(
        None,
        "the reference follows the policy (TR-DPO); soft:0.6@64: every 64 global steps it becomes 0.6 of the policy "
        "and 0.4 of itself; ema:0.99@64: 0.01 of the policy and 0.99 of itself; hard@512: every 512 steps the policy",
    )
    deepspeed: str | None = flag(None, "DeepSpeed configuration file of the policy, e.g. ds_configs/zero2.json")
    reference_config: str | None = flag(
        None, "DeepSpeed configuration file of the reference; without it ds_configs/reference.json"
    )
    device: str | None = flag(
        None,
        "cpu, cuda or cuda:N; without it what DeepSpeed finds. It chooses nothing: a run whose ranks have another "
        "device is refused, with the way to get this one",
    )
    gradient_checkpointing: bool = flag(
        False, "1: recompute activations in the backward pass, which needs less memory and more time"
    )
    use_compile: bool = flag(False, "1: apply torch.compile to the policy's blocks (ZeRO stages 0 to 2)")
    kernels: str = flag(
        "auto",
        "operations in bfloat16 on a CPU: auto: compiled kernels; torch: torch's operations only, nothing is compiled "
        "for them. The two differ by roundings",
        choices=("auto", "torch"),
    )
    keep_memory: bool = flag(
        True,
        "1: on a CPU allocate large tensors from a heap that the process keeps, which saves the system from clearing "
        "the memory again in every step; 0: torch's allocator",
    )
    attention: str = flag(
        "auto",
        "attention over packs; sdpa: torch's SDPA on one segment after another; varlen: one call of variable-length "
        "flash attention; flex: FlexAttention; auto: on a GPU the fastest backend that agrees with SDPA, measured at "
        "the start, on a CPU the native kernel or SDPA",
        choices=("auto", "sdpa", "varlen", "flex"),
    )
    disable_patches: str | None = flag(
        None,
        "names of patches of DeepSpeed to turn off, separated by commas, or all; each is listed with its purpose in "
        "minimind/engine/patches",
    )
