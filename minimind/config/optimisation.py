"""Flags for the optimizer: number of steps, batch size, learning rate and its schedule, clipping and precision."""

from __future__ import annotations

import dataclasses

from minimind.config.fields import flag


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimisationConfig:
    """Steps, batch size, learning rate, clipping and precision. A limit that was not given is None."""

    epochs: int = flag(1, "number of passes over the pairs", low=1)
    max_steps: int | None = flag(
        None, "stop after this many global steps, and end the learning rate schedule there; 0: no limit", low=0
    )
    batch_size: int = flag(4, "pairs per rank and micro-batch", low=1)
    accumulation_steps: int = flag(1, "micro-batches per global step", low=1)
    micro_batch_tokens: int | None = flag(
        None,
        "maximum number of packed tokens in a micro-batch: a rank's batch_size x accumulation_steps pairs of a global "
        "step are distributed over as few micro-batches as possible; 0: every micro-batch has batch_size pairs",
        low=0,
    )
    optimizer: str = flag(
        "adamw",
        "optimizer, in place of the DeepSpeed file's; adamw_8bit: AdamW of bitsandbytes; muon: DeepSpeed's "
        "Muon for hidden matrices, AdamW for the rest, without clipping",
        choices=("adamw", "adamw_8bit", "muon"),
    )
    learning_rate: float = flag(4e-8, "highest learning rate; --lr_schedule says how it changes", above=0)
    lr_schedule: str = flag(
        "minimind",
        "minimind: a cosine from the full rate to a tenth; cosine: to 0; linear: a line to 0; constant: the full rate; "
        "wsd: the full rate, and a line to 0 at the end",
        choices=("minimind", "cosine", "linear", "constant", "wsd"),
    )
    warmup_steps: int = flag(0, "global steps in which the learning rate rises linearly from 0", low=0)
    warmup_ratio: float | None = flag(
        None, "the same as a share of all global steps, rounded up; instead of --warmup_steps", low=0
    )
    decay_ratio: float | None = flag(
        None, "for wsd: share of the global steps at the end in which the rate falls. Without this flag 0.1", above=0
    )
    grad_clip: float = flag(1.0, "maximum gradient norm; 0: no clipping", low=0)
    dtype: str = flag(
        "bfloat16",
        "dtype of weights and activations; the optimizer's states are float32. Without this flag float32 for Hugging "
        "Face models on a CPU without bfloat16 instructions",
        choices=("bfloat16", "float16", "float32"),
    )
