"""Properties of model families that the rest of the project depends on: one entry in a table for each family.

    configuration -> family_of -> ModelFamily        packing_obstacle(configuration) -> reason or None

Code outside `model/` and `weights/` asks a family for a property and never tests the class of a configuration. To
support a model that needs different treatment, add a field here with the value that all other families have, set it in
the entry of the new family, and test both.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from transformers import AutoModelForCausalLM, PretrainedConfig

from minimind.model.configuration import MiniMindConfig

# Settings with which a model's own head transforms the logits. The scorer computes log-probs from the head's weight
# alone, so a model that sets one of them to anything but 1 cannot be packed.
_LOGIT_TRANSFORMS = ("final_logit_softcapping", "attn_logit_softcapping", "logit_scale", "logits_scaling")


def _model_type(config: PretrainedConfig) -> str:
    return config.model_type


def _minimind_label(config: PretrainedConfig) -> str:
    return f"MiniMind generation {config.generation}"


def _minimind_generation(config: PretrainedConfig) -> int:
    return config.generation


def _no_generation(config: PretrainedConfig) -> None:
    return None


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelFamily:
    """Properties shared by all models of one family. The defaults describe a Hugging Face model.

    Attributes:
        label: configuration -> name of the model for the user.
        generation: configuration -> MiniMind generation, which defaults follow; None for other models.
        packs_by_construction: the model computes packs exactly, which tests of this project prove. Other models are
            compared with their own forward over single rows before a run trains them.
        backbone_selects_positions: the backbone accepts `keep` (K,) and returns only those K positions.
        scales_router_loss: the backbone of a mixture returns the auxiliary loss, multiplied by its coefficient.
        exports_pth: a run also writes the weights as MiniMind's `.pth`.
        dropout_fields: fields of the configuration that may hold the dropout probability of attention weights.
        has_own_linear_layers: linear layers are classes of this project; see `linear_layers.py` for other models'.
        keeps_float32_norm_inputs: in 16-bit training each RMSNorm keeps float32 copies of its activations.
    """

    label: Callable[[PretrainedConfig], str] = _model_type
    generation: Callable[[PretrainedConfig], int | None] = _no_generation
    packs_by_construction: bool = False
    backbone_selects_positions: bool = False
    scales_router_loss: bool = False
    exports_pth: bool = False
    dropout_fields: tuple[str, ...] = ("attention_dropout", "attn_pdrop")
    has_own_linear_layers: bool = False
    keeps_float32_norm_inputs: bool = True


# The family of all configurations without an entry in the table.
HUGGING_FACE = ModelFamily()
MINIMIND = ModelFamily(
    label=_minimind_label,
    generation=_minimind_generation,
    packs_by_construction=True,
    backbone_selects_positions=True,
    scales_router_loss=True,
    exports_pth=True,
    dropout_fields=("dropout",),
    has_own_linear_layers=True,
    keeps_float32_norm_inputs=False,
)
FAMILIES: Mapping[type[PretrainedConfig], ModelFamily] = {MiniMindConfig: MINIMIND}


def family_of(config: PretrainedConfig) -> ModelFamily:
    """The family of a model: the entry of its configuration's class or nearest base class, `HUGGING_FACE` if none."""
    return next((FAMILIES[base] for base in type(config).__mro__ if base in FAMILIES), HUGGING_FACE)


def layer_values(config: PretrainedConfig, name: str) -> list[Any]:
    """Values of a setting: of each layer where layers differ (Gemma 3n, Gemma 4), else one, None if it is absent."""
    if name in (getattr(config, "per_layer_attributes", None) or ()):
        return [getattr(layer, name, None) for layer in config.per_layer_config]
    value = getattr(config, name, None)
    return list(value) if isinstance(value, (list, tuple)) else [value]


def packing_obstacle(config: PretrainedConfig, max_seq_len: int) -> str | None:
    """The reason why a model cannot be trained on packs, or None if its configuration gives no reason.

    A configuration does not show everything: before a run uses packs it also compares the model's log-probs of a pack
    with those of each row alone (`training/setup/oracle.py`).

    Args:
        max_seq_len: tokens in the longest row.
    """
    if family_of(config).packs_by_construction:
        return None
    # Packing needs an attention function of this project, which a model calls only through this interface.
    model_class = AutoModelForCausalLM._model_mapping[type(config)]
    if not getattr(model_class, "_supports_attention_backend", False):
        return f"{model_class.__name__} does not use transformers' attention interface"
    text = config.get_text_config()
    others = sorted(set(layer_values(text, "layer_types")) - {None, "full_attention", "sliding_attention"})
    if others:
        return f"it has layers of the kind {others[0]}"
    # A window that is at least as long as the longest row hides nothing.
    windows = [window for window in layer_values(text, "sliding_window") if window is not None]
    if windows and getattr(text, "use_sliding_window", True) and min(windows) < max_seq_len:
        return f"it attends over a sliding window of {min(windows)} tokens"
    for name in _LOGIT_TRANSFORMS:
        if getattr(text, name, None) not in (None, 1, 1.0):
            return f"it transforms its logits ({name})"
    return None


def model_identity(config: PretrainedConfig) -> dict[str, object]:
    """A model's configuration, without entries that do not affect its numbers."""
    model = config.to_diff_dict()
    for name in ("transformers_version", "_name_or_path", "dtype", "_attn_implementation"):
        model.pop(name, None)
    return {f"model.{name}": value for name, value in sorted(model.items())}
