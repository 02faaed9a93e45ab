"""Flags for the model: start weights, and the sizes that a weight file may not contain."""

from __future__ import annotations

import dataclasses

from minimind.config.fields import flag


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Start weights and model sizes. A size that was not given and has no default is None."""

    from_weight: str = flag(
        "full_sft",
        "start weights: a MiniMind .pth file, a Hugging Face folder, none (new random weights), or the short MiniMind "
        "name of a file in save_dir",
    )
    reference_weight: str | None = flag(
        None,
        "weights of the reference, if it is another model than the start weights: a .pth file, a Hugging Face folder "
        "or a run's folder, of the same vocabulary",
    )
    generation: int | None = flag(
        None,
        "MiniMind generation, which other defaults follow; read from the weights, 2 for new weights",
        choices=(0, 2, 3),
    )
    hidden_size: int = flag(512, "hidden size H; read from the weights, 768 with --generation 3", low=1)
    num_hidden_layers: int = flag(8, "number of layers L; read from the weights", low=1)
    use_moe: bool = flag(False, "1: mixture of experts; read from the weights")
    num_attention_heads: int | None = flag(
        None, "number of attention heads, if the weights do not contain it (MiniMind2: 8)", low=0
    )
    num_experts_per_tok: int | None = flag(
        None, "experts per token, if the weights do not contain it (MiniMind2: 2, MiniMind-3: 1)", low=0
    )
    rope_theta: float | None = flag(
        None, "base of the rotary embedding, if the weights do not contain it (MiniMind: 1e6)", low=0
    )
    dropout: bool = flag(
        False,
        "0: the model's dropout is turned off, so that the policy starts as its reference; 1: train with the dropout "
        "of the model's configuration",
    )
    router_aux_loss_coef: float | None = flag(
        None,
        "coefficient of the auxiliary loss that balances a mixture's experts; without this flag that of the model's "
        "configuration, which in transformers has the loss only with output_router_logits",
        low=0,
        zero_is_a_value=True,
    )
    inference_rope_scaling: bool = flag(False, "1: YaRN scaling of the rotary embedding, for contexts above 2048")
