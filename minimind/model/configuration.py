"""The configuration of MiniMind models of both generations, with MiniMind's own field names.

Generation 2 is MiniMind2 (like Llama). Generation 3 is MiniMind-3 (like Qwen3: queries and keys are normalised per
head). Two fields have a name in each generation (`n_routed_experts` and `num_experts`, `aux_loss_alpha` and
`router_aux_loss_coef`); both names can be given and read.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from transformers import PretrainedConfig

# Fields that only one generation has. They determine the generation when it is not given.
_ONLY_GENERATION_2 = ("n_routed_experts", "n_shared_experts", "aux_loss_alpha", "scoring_func", "seq_aux")
_ONLY_GENERATION_3 = ("num_experts", "moe_intermediate_size", "router_aux_loss_coef", "head_dim")

# YaRN (Peng et al., 2023, section 3.2): MiniMind's newest values, used when `inference_rope_scaling` is on.
_YARN = {
    "original_max_position_embeddings": 2048,
    "factor": 16.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "attention_factor": 1.0,
}


def default_intermediate_size(generation: int, hidden_size: int) -> int:
    """Default width of the feed-forward layer: a multiple of 64, from a formula of each generation."""
    if generation == 2:
        return 64 * math.ceil(int(hidden_size * 8 / 3) / 64)
    return 64 * math.ceil(hidden_size * math.pi / 64)


def infer_generation(fields: Iterable[str]) -> int:
    """3 if there are fields that only generation 3 has, and none that only generation 2 has; else 2."""
    names = set(fields)
    return 3 if names.intersection(_ONLY_GENERATION_3) and not names.intersection(_ONLY_GENERATION_2) else 2


class MiniMindConfig(PretrainedConfig):
    """Configuration of a MiniMind model of either generation.

    Args:
        generation: 2 or 3. By default it follows from the names of the other fields, and is 2 if they fit both.
        hidden_size: H. 512 when absent.
        num_hidden_layers: L. 8 when absent.
        use_moe: each layer has a mixture of experts instead of one feed-forward network.
        **fields: MiniMind's fields of either generation, and those of Hugging Face's PretrainedConfig.

    Raises:
        ValueError: the fields contradict each other (heads that do not divide, for example) or are not supported.
    """

    model_type = "minimind"
    keys_to_ignore_at_inference = ["cache", "past_key_values"]
    attribute_map = {"n_routed_experts": "num_experts", "aux_loss_alpha": "router_aux_loss_coef"}

    def __init__(
        self,
        hidden_size: int = 512,
        num_hidden_layers: int = 8,
        use_moe: bool = False,
        generation: int | None = None,
        **fields: Any,
    ) -> None:
        generation = infer_generation(fields) if generation is None else generation
        if generation not in (2, 3):
            raise ValueError(f"generation is {generation}; MiniMind has generations 2 and 3")
        is_2 = generation == 2

        self.generation = generation
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.use_moe = bool(use_moe)
        self.vocab_size = fields.pop("vocab_size", 6400)
        self.dropout = fields.pop("dropout", 0.0)
        self.hidden_act = fields.pop("hidden_act", "silu")
        self.num_attention_heads = fields.pop("num_attention_heads", 8)
        # None means multi-head attention: one key and value head for each query head.
        kv_heads = fields.pop("num_key_value_heads", 2 if is_2 else 4)
        self.num_key_value_heads = self.num_attention_heads if kv_heads is None else kv_heads
        self.head_dim = fields.pop("head_dim", None) or hidden_size // self.num_attention_heads
        intermediate = fields.pop("intermediate_size", None)
        self.intermediate_size = intermediate or default_intermediate_size(generation, hidden_size)
        self.max_position_embeddings = fields.pop("max_position_embeddings", 32768)
        self.rms_norm_eps = fields.pop("rms_norm_eps", 1e-5 if is_2 else 1e-6)
        self.rope_theta = float(fields.pop("rope_theta", 1e6))
        self.inference_rope_scaling = bool(fields.pop("inference_rope_scaling", False))
        self.yarn = self._yarn(fields.pop("yarn", None) or fields.pop("rope_scaling", None))
        self._set_expert_fields(fields, is_2)
        # Standard deviation of random weights. MiniMind uses Hugging Face's default.
        self.initializer_range = fields.pop("initializer_range", 0.02)
        # transformers' own fields: MiniMind's tokenizers have <|im_start|> at 1 and <|im_end|> at 2.
        fields.setdefault("bos_token_id", 1)
        fields.setdefault("eos_token_id", 2)
        fields.setdefault("tie_word_embeddings", True)
        fields.setdefault("use_cache", True)
        super().__init__(**fields)
        self._check()

    def _set_expert_fields(self, fields: dict[str, Any], is_2: bool) -> None:
        """Take the fields of the mixture of experts. Dense models keep but ignore them, as in MiniMind."""
        self.num_experts = fields.pop("num_experts", fields.pop("n_routed_experts", 4))
        self.num_experts_per_tok = fields.pop("num_experts_per_tok", 2 if is_2 else 1)
        self.moe_intermediate_size = fields.pop("moe_intermediate_size", None) or self.intermediate_size
        self.n_shared_experts = fields.pop("n_shared_experts", 1 if is_2 else 0) or 0
        self.norm_topk_prob = fields.pop("norm_topk_prob", True)
        self.seq_aux = fields.pop("seq_aux", is_2)
        default_coef = 0.01 if is_2 else 5e-4
        self.router_aux_loss_coef = fields.pop("router_aux_loss_coef", fields.pop("aux_loss_alpha", default_coef))
        self.scoring_func = fields.pop("scoring_func", "softmax")

    # Single values may be overridden by the field `yarn` or Hugging Face's `rope_scaling`.
    def _yarn(self, given: dict[str, Any] | None) -> dict[str, float] | None:
        if not self.inference_rope_scaling:
            return None
        return {name: (given or {}).get(name, value) for name, value in _YARN.items()}

    def _check(self) -> None:
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads {self.num_attention_heads} is not a multiple of num_key_value_heads "
                f"{self.num_key_value_heads}"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim {self.head_dim} is odd; the rotary embedding rotates pairs of channels")
        if self.scoring_func != "softmax":
            raise ValueError(f"scoring_func is {self.scoring_func!r}; MiniMind supports 'softmax'")
        if self.use_moe and not 1 <= self.num_experts_per_tok <= self.num_experts:
            raise ValueError(
                f"num_experts_per_tok is {self.num_experts_per_tok}; it must be between 1 and num_experts, "
                f"{self.num_experts}"
            )
