"""Architectures of transformers that MiniMind's models equal, and their configurations.

    MiniMindConfig -> plain_config -> Qwen3Config or Qwen3MoeConfig (generation 3), LlamaConfig (generation 2)
    one of these   -> minimind_config -> MiniMindConfig

Tensors keep their names and values. What has no equal is refused, with its name. A configuration that is returned turns
positions by the same angles as the one that was given, which is computed and compared.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import LlamaConfig, PretrainedConfig, Qwen3Config, Qwen3MoeConfig

from minimind.errors import WeightsError
from minimind.model.configuration import MiniMindConfig
from minimind.model.layers import rotary_frequencies
from minimind.weights.construction import empty_model

QWEN3, LLAMA = "qwen3", "llama"
PLAIN = (QWEN3, LLAMA)

# Fields with the same name and meaning in all of these architectures.
_SAME = (
    "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads head_dim "
    "hidden_act max_position_embeddings initializer_range rms_norm_eps tie_word_embeddings bos_token_id "
    "eos_token_id pad_token_id"
).split()
_SAME_EXPERTS = ("num_experts", "num_experts_per_tok", "moe_intermediate_size", "norm_topk_prob")
# Values of fields that change what a model computes, for which MiniMind has an equal.
_EXPECTED: dict[str, tuple[Any, ...]] = {
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
    "use_sliding_window": (False, None),
    "decoder_sparse_step": (1,),
    "mlp_only_layers": ([], None),
}
_YARN_KEYS = ("factor", "original_max_position_embeddings", "beta_fast", "beta_slow")
# Angles per position may differ by the rounding of float32.
_ROTARY_TOLERANCE = 1e-6


def plain_config(config: MiniMindConfig, to: str) -> PretrainedConfig:
    """The configuration of the architecture that computes what a MiniMind model computes.

    Args:
        to: QWEN3 or LLAMA.

    Raises:
        WeightsError: the model has a part without an equal there; the message names it.
    """
    if reason := _obstacle(config, to):
        raise WeightsError(f"MiniMind generation {config.generation} is no {to}: {reason}")
    fields = _same_fields(config)
    fields["rope_parameters"] = _rope_parameters(config)
    # Left as it is by inference; transformers has it for the attention weights alone.
    fields["attention_dropout"] = config.dropout
    try:
        if to == LLAMA:
            plain: PretrainedConfig = LlamaConfig(**fields)
        elif not config.use_moe:
            plain = Qwen3Config(**fields)
        else:
            experts = {name: getattr(config, name) for name in (*_SAME_EXPERTS, "router_aux_loss_coef")}
            plain = Qwen3MoeConfig(**fields, **experts)
    # transformers' strict data classes raise an error of their own class for values that they do not allow.
    except Exception as error:
        raise WeightsError(f"no {to} model has these sizes: {error}") from error
    _check_rotary(config, plain)
    return plain


def _obstacle(config: MiniMindConfig, to: str) -> str | None:
    """The part of a model that an architecture does not have; None if it has all."""
    if config.use_moe and config.n_shared_experts:
        return (
            f"its mixtures have shared experts ({config.n_shared_experts} in each layer), which every token passes "
            "ungated; no architecture of transformers computes this. Export it --to minimind or pth"
        )
    if config.generation == 3 and to == LLAMA:
        return "it normalises queries and keys (q_norm, k_norm), and Llama does not; its equal is --to qwen3"
    if config.generation == 2 and to == QWEN3:
        other = "" if config.use_moe else "; its equal is --to llama"
        return f"it does not normalise queries and keys, and Qwen3 does (q_norm, k_norm){other}"
    if config.generation == 2 and config.use_moe:
        return "it is a mixture of experts, and Llama has none. Export it --to minimind or pth"
    return None


def _same_fields(config: PretrainedConfig) -> dict[str, Any]:
    # MiniMind's configuration has no padding token unless it was given one.
    return {name: getattr(config, name, None) for name in _SAME}


def _rope_parameters(config: MiniMindConfig) -> dict[str, Any]:
    yarn = config.yarn
    # As in MiniMind, YaRN does nothing in a model whose context is not longer than the original one.
    if yarn is None or config.max_position_embeddings <= yarn["original_max_position_embeddings"]:
        if yarn is not None and yarn["attention_factor"] != 1.0:
            raise WeightsError("YaRN's attention_factor, in a model whose context YaRN does not extend, has no equal")
        return {"rope_type": "default", "rope_theta": config.rope_theta}
    return {"rope_type": "yarn", "rope_theta": config.rope_theta, **yarn}


def minimind_config(config: PretrainedConfig) -> MiniMindConfig:
    """The configuration of the MiniMind model that computes what a Qwen3, Qwen3-MoE or Llama model computes.

    Raises:
        WeightsError: it is another architecture, or has a part without an equal in MiniMind; the message names it.
    """
    if isinstance(config, MiniMindConfig):
        return config
    if type(config) not in (Qwen3Config, Qwen3MoeConfig, LlamaConfig):
        raise WeightsError(
            f"a model of type {config.model_type!r} has no equal in MiniMind; only qwen3, qwen3_moe and llama have"
        )
    for name, allowed in _EXPECTED.items():
        if (value := getattr(config, name, allowed[0])) not in allowed:
            raise WeightsError(f"a {config.model_type} model with {name} {value!r} has no equal in MiniMind")
    fields = _same_fields(config) | _rope_fields(config)
    moe = isinstance(config, Qwen3MoeConfig)
    if moe:
        fields |= {name: getattr(config, name) for name in (*_SAME_EXPERTS, "router_aux_loss_coef")}
    generation = 2 if type(config) is LlamaConfig else 3
    # transformers writes dropout of 0 into every configuration.
    fields["dropout"] = config.attention_dropout or 0.0
    try:
        found = MiniMindConfig(generation=generation, use_moe=moe, **fields)
    except ValueError as error:
        raise WeightsError(f"a {config.model_type} model has no equal in MiniMind: {error}") from error
    _check_rotary(found, config)
    return found


def _rope_fields(config: PretrainedConfig) -> dict[str, Any]:
    """MiniMind's fields of the rotary embedding."""
    rope = config.rope_parameters
    if rope.get("rope_type", "default") == "default":
        return {"rope_theta": rope["rope_theta"]}
    if rope["rope_type"] != "yarn":
        raise WeightsError(f"a rotary embedding of type {rope['rope_type']!r} has no equal in MiniMind")
    yarn = {name: rope[name] for name in _YARN_KEYS if rope.get(name) is not None}
    # Where the configuration does not give it, transformers derives it from the factor.
    yarn["attention_factor"] = float(empty_model(config).model.rotary_emb.attention_scaling)
    return {"rope_theta": rope["rope_theta"], "inference_rope_scaling": True, "yarn": yarn}


def _check_rotary(config: MiniMindConfig, plain: PretrainedConfig) -> None:
    """Compare the angles by which the two models turn positions.

    Raises:
        WeightsError: they differ, for example because YaRN's ends are rounded in another way.
    """
    rotary = empty_model(plain).model.rotary_emb
    ours = rotary_frequencies(config, torch.device("cpu"))
    scale = config.yarn["attention_factor"] if config.yarn else 1.0
    same = torch.allclose(ours, rotary.inv_freq, rtol=_ROTARY_TOLERANCE, atol=0)
    if not same or abs(rotary.attention_scaling - scale) > _ROTARY_TOLERANCE:
        raise WeightsError(
            f"the rotary embeddings of MiniMind and {plain.model_type} differ for rope_theta {config.rope_theta:g}, "
            f"head_dim {config.head_dim} and YaRN {config.yarn}"
        )
