"""MiniMind's own tensor names and ours: where they differ, and what a set of tensors tells about its model.

MiniMind keeps one module per expert (`mlp.experts.3.up_proj.weight`); this project keeps the experts of a layer
stacked (`mlp.experts.up_proj`, shape (E, out, in)). All other names are the same. This is the only module that
knows it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from minimind.errors import WeightsError
from minimind.model.configuration import MiniMindConfig
from minimind.weights.files import TensorFile

_EXPERT = re.compile(r"^(?P<layer>model\.layers\.\d+\.mlp\.experts)\.(?P<index>[0-9]{1,6})\.(?P<part>\w+)\.weight$")
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def stacked_names(names: Iterable[str]) -> dict[str, list[str]]:
    """Our name -> MiniMind's names it is made of, in the order of the experts; one name for what is not stacked."""
    groups: dict[str, dict[int, str]] = {}
    for name in names:
        match = _EXPERT.match(name)
        ours, index = (f"{match['layer']}.{match['part']}", int(match["index"])) if match else (name, 0)
        groups.setdefault(ours, {})[index] = name
    return {ours: [parts[index] for index in sorted(parts)] for ours, parts in groups.items()}


def minimind_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict -> MiniMind's: stacked experts taken apart, names as MiniMind's own `.pth` files have them."""
    out: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if re.search(r"\.mlp\.experts\.(gate_proj|up_proj|down_proj)$", name):
            layer, part = name.rsplit(".", 1)
            out.update({f"{layer}.{index}.{part}.weight": expert for index, expert in enumerate(tensor.unbind(0))})
        else:
            out[name] = tensor
    return out


def read_config(file: TensorFile, untold: Mapping[str, Any]) -> MiniMindConfig:
    """The configuration that a MiniMind weight file's tensors tell.

    Args:
        file: tensors under MiniMind's own names.
        untold: fields that tensors cannot tell (the number of heads in generation 2, of experts per token, ...); the
            generation's defaults hold where they are absent.

    Raises:
        WeightsError: the tensors are not those of a MiniMind model.
    """
    names = set(file)
    if EMBEDDING not in names or "model.layers.0.self_attn.q_proj.weight" not in names:
        few = ", ".join(sorted(names)[:5])
        raise WeightsError(f"{file.path}: not MiniMind weights; expected {EMBEDDING!r} and others, found {few}, ...")
    layer = "model.layers.0."
    generation = 3 if f"{layer}self_attn.q_norm.weight" in names else 2
    vocab_size, hidden_size = _matrix(file, EMBEDDING)
    q_size = _matrix(file, f"{layer}self_attn.q_proj.weight")[0]
    kv_size = _matrix(file, f"{layer}self_attn.k_proj.weight")[0]
    if generation == 3:
        head_dim = _size(file, f"{layer}self_attn.q_norm.weight")
    else:
        heads = untold.get("num_attention_heads", MiniMindConfig(generation=2).num_attention_heads)
        if q_size % heads:
            raise WeightsError(
                f"{file.path}: {q_size} query channels do not divide into {heads} heads; give --num_attention_heads"
            )
        head_dim = q_size // heads
        if kv_size % head_dim:
            raise WeightsError(
                f"{file.path}: {kv_size} key channels do not divide into heads of {head_dim}, which "
                f"{heads} heads would have; give another --num_attention_heads"
            )
    numbers = {match[1] for name in names if (match := re.match(r"model\.layers\.(\d+)\.", name))}
    if numbers != {str(number) for number in range(len(numbers))}:
        raise WeightsError(f"{file.path}: its layers are not numbered 0 to {len(numbers) - 1}")
    layers = len(numbers)
    use_moe = f"{layer}mlp.gate.weight" in names
    fields: dict[str, Any] = {
        "num_attention_heads": q_size // head_dim,
        "num_key_value_heads": kv_size // head_dim,
        "head_dim": head_dim,
        "tie_word_embeddings": HEAD not in names or _same(file[HEAD], file[EMBEDDING]),
    }
    if use_moe:
        fields["num_experts"] = _size(file, f"{layer}mlp.gate.weight")
        first = f"{layer}mlp.experts.0.gate_proj.weight"
        if first not in names:
            raise WeightsError(f"{file.path}: has a router but no {first!r}")
        fields["moe_intermediate_size"] = _size(file, first)
        fields["n_shared_experts"] = sum(
            re.match(rf"{re.escape(layer)}mlp\.shared_experts\.\d+\.gate_proj\.weight$", name) is not None
            for name in names
        )
    elif f"{layer}mlp.gate_proj.weight" in names:
        fields["intermediate_size"] = _size(file, f"{layer}mlp.gate_proj.weight")
    try:
        return MiniMindConfig(
            generation=generation,
            vocab_size=vocab_size,
            hidden_size=hidden_size,
            num_hidden_layers=layers,
            use_moe=use_moe,
            **fields,
            **{name: value for name, value in untold.items() if name not in fields},
        )
    except ValueError as error:
        given = ", ".join(f"--{name} {value}" for name, value in untold.items()) or "no flag"
        raise WeightsError(f"{file.path}: no MiniMind model has these tensors with {given}: {error}") from error


def _size(file: TensorFile, name: str) -> int:
    """The first dimension of a tensor, at least 1."""
    shape = file.shape(name)
    if not shape or not shape[0]:
        raise WeightsError(f"{file.path}: {name} has shape {shape}; it holds nothing")
    return shape[0]


def _matrix(file: TensorFile, name: str) -> tuple[int, int]:
    shape = file.shape(name)
    if len(shape) != 2 or not all(shape):
        raise WeightsError(f"{file.path}: {name} has shape {shape}; a matrix is expected")
    return shape[0], shape[1]


def _same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and (one.data_ptr() == other.data_ptr() or torch.equal(one, other))
