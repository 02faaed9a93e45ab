"""Flags for low-rank adapters (LoRA): their size, where they are, how they start and what is exported."""

from __future__ import annotations

import dataclasses

from minimind.config.fields import flag


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """Low-rank adapters of frozen weights. Without a rank all weights train."""

    lora_rank: int | None = flag(
        None, "rank of low-rank adapters (LoRA), which train instead of the weights; 0: all weights train", low=0
    )
    lora_alpha: float | None = flag(
        None, "adapters are multiplied by lora_alpha / lora_rank; without this flag by 2", above=0
    )
    lora_dropout: float = flag(0.0, "probability with which an adapter's inputs are dropped in training", low=0)
    lora_targets: str = flag(
        "all-linear",
        "layers that get adapters: all-linear: every linear layer but the head; experts: all-linear and the stacked "
        "experts of a mixture; square: linear layers with as many outputs as inputs, as in MiniMind; or names of "
        "layers, separated by commas, e.g. q_proj,v_proj",
    )
    use_dora: bool = flag(False, "1: adapters change direction and length of a weight's rows separately (DoRA)")
    use_rslora: bool = flag(False, "1: adapters are multiplied by lora_alpha / sqrt(lora_rank) (rsLoRA)")
    lora_init: str = flag(
        "default",
        "start values of adapters, as peft makes them: default: A as of a linear layer, B 0; gaussian: A normal, B 0; "
        "orthogonal: A and B random, and their product 0",
    )
    from_adapter: str | None = flag(None, "folder of an adapter in peft's format, from which training goes on")
    lora_reference: str = flag(
        "base",
        "reference of a run with --from_adapter: base: the weights without adapters; start: with the start adapter",
        choices=("base", "start"),
    )
    quantize: str = flag(
        "none",
        "nf4: the linear layers under adapters, but not the head, are kept in 4 bits by bitsandbytes (QLoRA); none: in "
        "the precision of --dtype",
        choices=("none", "nf4"),
    )
    merge: bool = flag(False, "1: also write the weights with the adapters merged into them")
