"""Files of adapters: peft's format, and MiniMind's.

folder in peft's format | MiniMind's lora_*.pth -> open_adapter -> SavedAdapter
trained values -> save_adapter, save_minimind_adapter -> the same forms
base, trained values -> merged_state -> weights without adapters
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from minimind.durable import whole_file, whole_folder
from minimind.errors import WeightsError
from minimind.model.adapters import (
    ALL_LINEAR,
    AdapterSpec,
    adapted_layer,
    adapted_layers,
    adapter_of,
    add_adapters,
    base_name,
    find_stacks,
    find_targets,
    peft_config,
    saved_name,
)
from minimind.model.text_half import freeze_other_parts
from minimind.weights.adapters import SavedAdapter, adapter_shapes
from minimind.weights.construction import empty_model, model_from_tensors
from minimind.weights.files import TensorFile, open_pickled, open_safetensors
from minimind.weights.sources import WeightSource

_CONFIG, _TENSORS, _PICKLED = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
# Fields of peft's configuration that are read here, or change nothing that an adapter computes. Every other field must
# have no value, because it may change what an adapter means: another kind of layer, more parameters, another base.
_READ = {"r", "lora_alpha", "use_dora", "use_rslora", "target_parameters", "peft_type", "bias", "init_lora_weights"}
_HARMLESS = {
    *("auto_mapping", "base_model_name_or_path", "fan_in_fan_out", "inference_mode", "lora_dropout", "peft_version"),
    *("layers_pattern", "layers_to_transform", "megatron_core", "revision", "runtime_config", "target_modules"),
    *("task_type", "exclude_modules", "ensure_weight_tying", "eva_config", "corda_config", "lora_ga_config"),
    *("loftq_config", "qalora_group_size"),
}
_VALUES: Mapping[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none", None),
    # With other start values peft changes the base when it loads an adapter (PiSSA, OLoRA, LoftQ, CorDA, LoRA-GA).
    "init_lora_weights": (True, False, None, "gaussian", "orthogonal", "eva", "mica"),
}


def open_adapter(path: Path, base: WeightSource, dropout: float) -> SavedAdapter:
    """Open an adapter in peft's format, or MiniMind's `lora_*.pth`.

    Args:
        path: the folder, or the file.
        base: the weights that it is for.
        dropout: see `AdapterSpec`; an adapter's file does not bind it.

    Raises:
        WeightsError: it is missing, damaged, of another kind, or does not fit the weights.
    """
    if path.is_file():
        return _open_minimind(path, base, dropout)
    if not (path / _CONFIG).is_file():
        raise WeightsError(f"{path}: neither a folder with an {_CONFIG} nor a MiniMind lora_*.pth")
    config = _read_config(path / _CONFIG)
    if (path / _TENSORS).is_file():
        file = TensorFile(path / _TENSORS, open_safetensors(path / _TENSORS))
    else:
        file = open_pickled(path / _PICKLED)
    layers = {name.removeprefix("base_model.model.").partition(".lora_")[0] for name in file if ".lora_" in name}
    linear, experts = adaptable(base)
    wanted = tuple(config.get("target_parameters") or ())
    stacks = [full for full in experts if any(full == name or full.endswith(f".{name}") for name in wanted)]
    for name in wanted:
        if not any(full == name or full.endswith(f".{name}") for full in stacks):
            raise WeightsError(f"{path / _CONFIG}: target_parameters has {name!r}, which is no stack of experts here")
    try:
        spec = AdapterSpec(
            rank=int(config["r"]),
            alpha=float(config["lora_alpha"]),
            dropout=dropout,
            dora=bool(config.get("use_dora")),
            rslora=bool(config.get("use_rslora")),
            layers=tuple(sorted(layers & linear)),
            stacks=tuple(sorted(stacks)),
        )
        if spec.rank < 1:
            raise ValueError("r is below 1")
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsError(f"{path / _CONFIG}: r or lora_alpha is missing or no number ({error})") from error
    return _fitted(spec, path, base, file)


def adaptable(base: WeightSource) -> tuple[set[str], tuple[str, ...]]:
    """Names of the linear layers, and of the stacks of experts, that may have adapters; not the head's."""
    model = empty_model(base.config)
    freeze_other_parts(model)
    return set(find_targets(model, ALL_LINEAR)[0]), find_stacks(model)


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        fields = dict(config)
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise WeightsError(f"{path}: not a readable configuration of an adapter ({error})") from error
    for name, values in _VALUES.items():
        if fields.get(name, values[0]) not in values:
            raise WeightsError(f"{path}: {name} is {fields[name]!r}, which is not supported; {values[0]!r} is")
    for name in fields.keys() - _READ - _HARMLESS:
        if fields[name]:
            raise WeightsError(
                f"{path}: {name} is {fields[name]!r}, which is not supported; only adapters without it are"
            )
    return fields


def _fitted(spec: AdapterSpec, path: Path, base: WeightSource, file: Mapping[str, Tensor]) -> SavedAdapter:
    """The adapter under the names of the model; every tensor must fit.

    Raises:
        WeightsError: names or shapes differ from the model's.
    """
    if not spec.layers and not spec.stacks:
        raise WeightsError(f"{path}: none of its tensors belongs to a layer of {base.origin}")
    shapes = adapter_shapes(base.config, spec)
    names = {saved_name(name): name for name in shapes}
    problems = [f"missing: {name}" for name in names if name not in file]
    problems += [f"unexpected: {name}" for name in file if name not in names]
    for saved, name in names.items():
        if saved in file and tuple(file[saved].shape) != shapes[name]:
            problems.append(f"wrong shape: {saved} is {tuple(file[saved].shape)}, the model has {shapes[name]}")
    if problems:
        more = f"\n  ... and {len(problems) - 20} more" if len(problems) > 20 else ""
        listed = "\n".join(f"  {problem}" for problem in problems[:20])
        raise WeightsError(f"{path}: does not fit {base.origin}:\n{listed}{more}")
    return SavedAdapter(spec, str(path), {name: file[saved] for saved, name in names.items()})


def _open_minimind(path: Path, base: WeightSource, dropout: float) -> SavedAdapter:
    """MiniMind's own form: `layer.lora.A.weight` and `layer.lora.B.weight`, whose product is not scaled."""
    file = open_pickled(path)
    parts = {".lora.A.weight": ".lora_A.weight", ".lora.B.weight": ".lora_B.weight"}
    renamed: dict[str, Tensor] = {}
    for name, tensor in file.items():
        ending = next((end for end in parts if name.endswith(end)), None)
        if ending is None or tensor.dim() != 2:
            raise WeightsError(f"{path}: {name!r} is no matrix A or B of MiniMind's LoRA")
        renamed[f"base_model.model.{name.removesuffix(ending)}{parts[ending]}"] = tensor
    ranks = {len(tensor) for name, tensor in renamed.items() if ".lora_A." in name}
    if len(ranks) != 1:
        raise WeightsError(f"{path}: its matrices A have {len(ranks)} different ranks; MiniMind's have one")
    (rank,) = ranks
    layers = {name.removeprefix("base_model.model.").partition(".lora_")[0] for name in renamed if ".lora_A." in name}
    spec = AdapterSpec(
        rank=rank,
        alpha=rank,
        dropout=dropout,
        layers=tuple(sorted(layers & adaptable(base)[0])),
    )
    return _fitted(spec, path, base, renamed)


def save_adapter(
    state: Mapping[str, Tensor], spec: AdapterSpec, base: WeightSource, folder: Path, init: bool | str
) -> None:
    """Write a folder that `peft.PeftModel.from_pretrained` loads.

    Args:
        state: the trained parameters, float32, by their names in the model with adapters.
        init: start values, for the record.

    Raises:
        WeightsError: it cannot be written; an old folder stays as it was.
    """
    config = peft_config(empty_model(base.config), spec, init)
    config.base_model_name_or_path = base.origin
    config.inference_mode = True
    tensors = {saved_name(name): tensor.contiguous() for name, tensor in state.items()}
    try:
        with whole_folder(folder) as partial:
            config.save_pretrained(str(partial))
            save_file(tensors, partial / _TENSORS, metadata={"format": "pt"})
    except (OSError, RuntimeError, SafetensorError) as error:
        raise WeightsError(f"{folder}: cannot be written ({error})") from error


def save_minimind_adapter(state: Mapping[str, Tensor], spec: AdapterSpec, path: Path, dtype: torch.dtype) -> None:
    """Write MiniMind's `lora_*.pth`; the scaling becomes a part of B.

    Raises:
        WeightsError: the file cannot be written; an old file stays as it was.
    """
    out: dict[str, Tensor] = {}
    for name, tensor in state.items():
        layer, part = adapted_layer(name)
        value = tensor * spec.scaling if part == "lora_B" else tensor
        out[f"{layer}.lora.{part[-1]}.weight"] = value.to(dtype)
    try:
        with whole_file(path) as partial:
            torch.save(out, partial)
    # torch's zip writer raises a RuntimeError when the disk is full.
    except (OSError, RuntimeError) as error:
        raise WeightsError(f"{path}: cannot be written ({error})") from error


@torch.no_grad()
def merged_state(base: WeightSource, spec: AdapterSpec, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The base's weights with adapters merged into them, by peft, in float32.

    Args:
        state: the adapters' parameters, by their names in the model with adapters.
    """
    copies = {name: base.read(name).to(torch.float32, copy=True) for name in base.shapes()}
    model = model_from_tensors(base.config, copies)
    freeze_other_parts(model)
    add_adapters(model, spec)
    for name, parameter in model.named_parameters():
        if adapter_of(name) is not None:
            parameter.copy_(state[name])
    # The outer layer of stacked experts has the inner ones as its base.
    for layer in reversed(adapted_layers(model)):
        layer.merge()
    parameters = {base_name(name): p.data for name, p in model.named_parameters() if adapter_of(name) is None}
    buffers = dict(model.named_buffers())
    return {name: parameters[name] if name in parameters else buffers[name] for name in copies}
