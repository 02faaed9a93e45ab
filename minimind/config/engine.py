"""Flags about how the model is computed: DeepSpeed files, reference, attention, recomputation, compilation."""

from __future__ import annotations

import dataclasses

from minimind.config.fields import flag


@dataclasses.dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """DeepSpeed files and the implementation of forward and backward. None of a path means that it was not given."""

    reference: str = flag(
        "live",
        "live: a frozen ZeRO-3 shard computes the reference's log-probs in every step; cached: it computes the "
        "log-probs of all pairs once and stores them in cache_dir",
        choices=("live", "cached"),
    )
    deepspeed: str | None = flag(None, "DeepSpeed configuration file of the policy, e.g. ds_configs/zero2.json")
    reference_config: str | None = flag(
        None, "DeepSpeed configuration file of the reference; without it ds_configs/reference.json"
    )
    gradient_checkpointing: bool = flag(
        False, "1: recompute activations in the backward pass, which needs less memory and more time"
    )
    use_compile: bool = flag(False, "1: apply torch.compile to the policy's blocks (ZeRO stages 0 to 2)")
    attention: str = flag(
        "auto",
        "attention over packs: sdpa: torch's SDPA on each segment; varlen: one call of variable-length flash "
        "attention; flex: FlexAttention; auto: on a GPU the fastest backend whose numbers agree with SDPA, measured "
        "at the start, on a CPU the native kernel or SDPA",
        choices=("auto", "sdpa", "varlen", "flex"),
    )
