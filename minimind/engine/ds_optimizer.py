"""The `optimizer` section of a DeepSpeed configuration: the file's, or the one that --optimizer names.

section + flag -> choose_optimizer -> section of one optimizer with every value, settings with its name
section + ZeRO -> check_under_zero -> problems: optimizers that DeepSpeed would run wrongly, or refuse with a traceback
model          -> muon_obstacle    -> parameters that DeepSpeed's Muon would take for hidden matrices
"""

from __future__ import annotations

import difflib
import importlib.metadata
import json
from collections.abc import Callable, Mapping
from typing import Any

import torch
from packaging.version import Version
from torch import nn

from minimind.config import DEEPSPEED_FILE, Settings
from minimind.engine.ds_schema import value_at

MUON, ADAMW_8BIT = "muon", "adamw_8bit"
# Our name of bitsandbytes' optimizer, which DeepSpeed takes as an object: it has no type for it.
TYPE_8BIT = "AdamW8bit"
# The first version of bitsandbytes whose 8-bit optimizers run on a CPU.
_CPU_8BIT = "0.50"
_OPTIMIZERS = ("Adam", "AdamW", "Adagrad", "Lamb", "Lion", "Muon", "SGD")
_ADAM_KEYS = (
    "lr betas eps weight_decay torch_adam adam_w_mode amsgrad bias_correction fused foreach fp32_optimizer_states"
).split()
_MUON_KEYS = (
    "lr muon_lr adam_lr momentum ns_method per_head_muon betas eps weight_decay torch_adam adam_w_mode foreach "
    "fp32_optimizer_states"
).split()
_8BIT_KEYS = "lr betas eps weight_decay".split()
# Defaults of torch's AdamW, with which MiniMind trains, and of DeepSpeed's Muon for matrices.
_ADAMW = {"betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.01}
_MUON = {"momentum": 0.95, "ns_method": "gram"}
# Flag -> section of the file, without values that are chosen later.
_SECTIONS: dict[str, dict[str, Any]] = {
    # MiniMind's optimizer: torch's own AdamW. DeepSpeed would otherwise compile its FusedAdam.
    "adamw": {"type": "AdamW", "params": {"torch_adam": True, "fused": True}},
    ADAMW_8BIT: {"type": TYPE_8BIT, "params": {}},
    MUON: {"type": "Muon", "params": {"torch_adam": True}},
}
# What a flag keeps of the file's parameters of another optimizer, because it means the same there.
_SHARED = ("lr", "betas", "eps", "weight_decay")


def choose_optimizer(
    values: dict[str, Any], settings: Settings, on_cpu: bool, problems: list[str]
) -> tuple[Settings, dict[str, str]]:
    """Complete the section, in place: the flag's optimizer if it was given, else the file's, else AdamW.

    Returns: settings with the optimizer's name, and without clipping for Muon; the type that the flag replaces -> why.
    """
    named, overridden = settings.config.optimisation.optimizer, {}
    kind = str(value_at(values, "optimizer.type")).lower()
    if "optimizer" not in values:
        values["optimizer"] = _section(named)
    elif settings.explicit("optimizer"):
        wanted = _section(named)
        if kind != wanted["type"].lower():
            given = values["optimizer"]
            params = {key: value for key, value in given["params"].items() if key in _SHARED}
            overridden["optimizer.type"] = f"--optimizer; the DeepSpeed file says {json.dumps(given.get('type'))}"
            values["optimizer"] = {**wanted, "params": {**wanted["params"], **params}}
    elif kind != named:
        settings = settings.with_values({"optimizer": kind}, DEEPSPEED_FILE)
    _complete(values["optimizer"], problems)
    if kind_of(values) == MUON:
        settings = settings.with_defaults({"grad_clip": 0.0}, "optimizer Muon")
    if kind_of(values) == ADAMW_8BIT:
        problems += _obstacles_8bit(on_cpu)
    return settings, overridden


def kind_of(values: dict[str, Any]) -> str:
    """The optimizer of a complete configuration, in lower case; "adamw_8bit" for bitsandbytes'."""
    kind = str(values["optimizer"].get("type"))
    return ADAMW_8BIT if kind == TYPE_8BIT else kind.lower()


def _section(name: str) -> dict[str, Any]:
    section = _SECTIONS[name]
    return {**section, "params": dict(section["params"])}


def _obstacles_8bit(on_cpu: bool) -> list[str]:
    wanted = f"bitsandbytes>={_CPU_8BIT}" if on_cpu else "bitsandbytes"
    try:
        found = importlib.metadata.version("bitsandbytes")
    except importlib.metadata.PackageNotFoundError:
        return [f"--optimizer adamw_8bit needs the package bitsandbytes: pip install '{wanted}'"]
    if on_cpu and Version(found) < Version(_CPU_8BIT):
        return [
            f"--optimizer adamw_8bit on a CPU needs bitsandbytes {_CPU_8BIT} or newer, and {found} is installed: "
            f"pip install '{wanted}'"
        ]
    return []


def _complete(section: dict[str, Any], problems: list[str]) -> None:
    """Check the section's keys. Missing values become torch's defaults for Adam, as in MiniMind, and Muon's own."""
    kind, params = section.get("type"), section["params"]
    lower = str(kind).lower()
    if kind != TYPE_8BIT and lower not in (name.lower() for name in _OPTIMIZERS):
        problems.append(f"'optimizer.type' is {json.dumps(kind)}; known are {', '.join(_OPTIMIZERS)}")
    elif lower == "sgd":
        # DeepSpeed looks the name up in torch.optim, where "sgd" is a module.
        section["type"] = "SGD"
    if lower in ("adam", "adamw"):
        defaults, known = _ADAMW, _ADAM_KEYS
    elif lower == "muon":
        # Without it DeepSpeed would compile FusedAdam for embeddings and norms.
        defaults, known = {**_ADAMW, **_MUON, "torch_adam": True}, _MUON_KEYS
    elif kind == TYPE_8BIT:
        defaults, known = _ADAMW, _8BIT_KEYS
    else:
        return
    for name, value in defaults.items():
        if params.get(name, "auto") == "auto":
            params[name] = value
    if lower in ("adam", "adamw") and params.get("torch_adam") is not True:
        problems += [
            f"'optimizer.params.{name}' belongs to torch's AdamW: set \"torch_adam\": true, or drop it"
            for name in ("fused", "foreach")
            if name in params
        ]
    for name in params:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean '{near[0]}'?" if near else f"; known are {', '.join(known)}"
            problems.append(f"unknown key 'optimizer.params.{name}'{hint}")


def check_under_zero(values: dict[str, Any], settings: Settings, stage: int, problems: list[str]) -> dict[str, str]:
    """Allow optimizers that are right on shards, and refuse those that are not.

    Returns: the changed key of the file and the reason; empty if nothing is changed.
    """
    kind, zero = kind_of(values), values["zero_optimization"]
    offloads = (zero.get("offload_optimizer") or {}).get("device", "none")
    if kind == "lamb" and stage > 0:
        problems.append(
            "'optimizer.type' is Lamb, which scales updates by the norms of whole tensors, and ZeRO has only shards of "
            "them; use AdamW"
        )
    # Both update each element, or each block of elements, by itself, so shards are right (SGD is tested by
    # tests/distributed/workers/budget.py); DeepSpeed otherwise refuses them with an AssertionError.
    if stage > 0 and kind in ("sgd", ADAMW_8BIT) and not values.setdefault("zero_allow_untested_optimizer", True):
        problems.append(
            f"'zero_allow_untested_optimizer' is false, and DeepSpeed shards {values['optimizer']['type']} only with "
            "it; remove it"
        )
    if kind == ADAMW_8BIT and offloads != "none":
        problems.append(
            f"--optimizer adamw_8bit keeps states beside the weights, and 'offload_optimizer.device' is {offloads}; "
            "use --optimizer adamw, or a file without offload"
        )
    return _check_muon(values, settings, stage, offloads, problems) if kind == MUON else {}


def _check_muon(
    values: dict[str, Any], settings: Settings, stage: int, offloads: str, problems: list[str]
) -> dict[str, str]:
    zero = values["zero_optimization"]
    if settings.config.optimisation.grad_clip > 0:
        # Seen in 0.19.8: at stages 1 to 3 the norm is that of the orthogonalised matrices, which is the same whatever
        # the gradient is. Clipping by it would only divide the learning rate.
        problems.append(
            "gradients are not clipped under Muon, because DeepSpeed would clip its updates, whose norm does not "
            "depend on the gradient; use --grad_clip 0"
        )
    if offloads == "nvme":
        problems.append("'offload_optimizer.device' is nvme: Muon under it is not tested; use cpu, or AdamW")
    quantized = [key for key in zero if key.startswith("zero_quantized") and zero[key]]
    if quantized or zero.get("zero_hpz_partition_size", 1) > 1:
        problems.append("ZeRO++ and Muon do not work together in DeepSpeed; use ds_configs/zero3.json, or AdamW")
    if stage < 3 or zero.get("reduce_scatter") is False:
        return {}
    zero["reduce_scatter"] = False
    return {"zero_optimization.reduce_scatter": "Muon needs whole gradients"}


def muon_obstacle(model: nn.Module) -> str:
    """Why DeepSpeed's Muon would be wrong for a model; empty if it would not.

    DeepSpeed takes all matrices for hidden ones, except those with "embed" or "lm_head" in their names. Muon is defined
    for hidden matrices only (Jordan et al., 2024, https://kellerjordan.github.io/posts/muon/).
    """
    outside = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    if head := getattr(model, "get_output_embeddings", lambda: None)():
        outside.append(head)
    ours = {id(module.weight) for module in outside}
    taken = [
        name
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if id(parameter) in ours and not any(word in name.lower() for word in ("embed", "lm_head"))
    ]
    return f"DeepSpeed's Muon would take {taken[0]} for a hidden matrix; use --optimizer adamw" if taken else ""


def make_8bit(params: Mapping[str, Any]) -> Callable[[Any], torch.optim.Optimizer]:
    """What makes bitsandbytes' AdamW of the parameters that DeepSpeed gives it; its moments have 8 bits an element."""
    adamw = importlib.import_module("bitsandbytes").optim.AdamW8bit
    return lambda parameters: adamw(parameters, **params)
