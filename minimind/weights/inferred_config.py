"""The configuration of a MiniMind `.pth`, which holds no configuration: inferred from tensor names and shapes.

TensorFile, fields given by the user -> infer_config -> MiniMindConfig
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from minimind.errors import WeightsError
from minimind.model.configuration import MiniMindConfig
from minimind.weights.files import TensorFile
from minimind.weights.names import EMBEDDING, HEAD
from minimind.weights.ties import same_content

# Fields of a model's configuration that a .pth does not tell; flags of these names give them.
NOT_IN_PTH = ("num_attention_heads", "num_experts_per_tok", "rope_theta", "inference_rope_scaling")
# All layers have the same shapes, so the first one represents all of them.
_LAYER = "model.layers.0."


def infer_config(file: TensorFile, extra_fields: Mapping[str, Any]) -> MiniMindConfig:
    """The configuration of the model that a weight file was saved from.

    Args:
        file: tensors under MiniMind's own names.
        extra_fields: configuration fields that shapes do not determine (number of heads in generation 2, experts per
            token, ...). Absent ones get the default of the generation. Fields that shapes determine are ignored.

    Raises:
        WeightsError: the tensors are not those of a MiniMind model.
    """
    if EMBEDDING not in file or f"{_LAYER}self_attn.q_proj.weight" not in file:
        few = ", ".join(sorted(file)[:5])
        raise WeightsError(f"{file.path}: not MiniMind weights; expected {EMBEDDING!r} and others, found {few}, ...")
    # Only generation 3 normalises queries per head.
    generation = 3 if f"{_LAYER}self_attn.q_norm.weight" in file else 2
    vocab_size, hidden_size = _matrix_shape(file, EMBEDDING)
    fields = _head_fields(file, generation, extra_fields)
    layers = _count_layers(file)
    # MiniMind writes a tied head as well, so equal content means tied.
    fields["tie_word_embeddings"] = HEAD not in file or same_content(file[HEAD], file[EMBEDDING])
    use_moe = f"{_LAYER}mlp.gate.weight" in file
    if use_moe:
        fields.update(_expert_fields(file))
    elif f"{_LAYER}mlp.gate_proj.weight" in file:
        fields["intermediate_size"] = _first_dimension(file, f"{_LAYER}mlp.gate_proj.weight")
    try:
        return MiniMindConfig(
            generation=generation,
            vocab_size=vocab_size,
            hidden_size=hidden_size,
            num_hidden_layers=layers,
            use_moe=use_moe,
            **fields,
            **{name: value for name, value in extra_fields.items() if name not in fields},
        )
    except ValueError as error:
        given = ", ".join(f"--{name} {value}" for name, value in extra_fields.items()) or "the default settings"
        raise WeightsError(f"{file.path}: no MiniMind model has these tensors with {given}: {error}") from error


def _head_fields(file: TensorFile, generation: int, extra_fields: Mapping[str, Any]) -> dict[str, Any]:
    """Number and size of the heads. Generation 3 stores the size; in generation 2 the user gives the number."""
    q_size = _matrix_shape(file, f"{_LAYER}self_attn.q_proj.weight")[0]
    kv_size = _matrix_shape(file, f"{_LAYER}self_attn.k_proj.weight")[0]
    if generation == 3:
        head_dim = _first_dimension(file, f"{_LAYER}self_attn.q_norm.weight")
    else:
        heads = extra_fields.get("num_attention_heads", MiniMindConfig(generation=2).num_attention_heads)
        if q_size % heads:
            raise WeightsError(
                f"{file.path}: {q_size} query channels do not divide into {heads} heads; give --num_attention_heads"
            )
        head_dim = q_size // heads
        if kv_size % head_dim:
            raise WeightsError(
                f"{file.path}: with {heads} heads of {head_dim} channels, {kv_size} key channels do not divide into "
                "heads; give another --num_attention_heads"
            )
    return {
        "num_attention_heads": q_size // head_dim,
        "num_key_value_heads": kv_size // head_dim,
        "head_dim": head_dim,
    }


def _count_layers(file: TensorFile) -> int:
    numbers = {match[1] for name in file if (match := re.match(r"model\.layers\.(\d+)\.", name))}
    # Compared as text, so that a name with the number "00" is no layer 0.
    if numbers != {str(number) for number in range(len(numbers))}:
        raise WeightsError(f"{file.path}: its layers are not numbered 0 to {len(numbers) - 1}")
    return len(numbers)


def _expert_fields(file: TensorFile) -> dict[str, Any]:
    """Sizes of a mixture of experts: the router has one row for each expert."""
    first = f"{_LAYER}mlp.experts.0.gate_proj.weight"
    if first not in file:
        raise WeightsError(f"{file.path}: has a router but no {first!r}")
    shared = re.compile(rf"{re.escape(_LAYER)}mlp\.shared_experts\.\d+\.gate_proj\.weight$")
    return {
        "num_experts": _first_dimension(file, f"{_LAYER}mlp.gate.weight"),
        "moe_intermediate_size": _first_dimension(file, first),
        "n_shared_experts": sum(shared.match(name) is not None for name in file),
    }


def _first_dimension(file: TensorFile, name: str) -> int:
    """The first dimension of a tensor, at least 1."""
    shape = file.shape(name)
    if not shape or not shape[0]:
        raise WeightsError(f"{file.path}: {name} is empty (shape {shape})")
    return shape[0]


def _matrix_shape(file: TensorFile, name: str) -> tuple[int, int]:
    shape = file.shape(name)
    if len(shape) != 2 or not all(shape):
        raise WeightsError(f"{file.path}: {name} has shape {shape}; a matrix is expected")
    return shape[0], shape[1]
