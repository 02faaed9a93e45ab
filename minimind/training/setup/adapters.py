"""The adapters of a run: what the flags ask for, or an adapter's files.

--lora_rank, --from_adapter + start weights -> open_adapters -> settings as they are used, AdapterSource or None
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from minimind.config import JobConfig, Settings
from minimind.engine.ds_zero import has_plain_shards, swaps_to_nvme
from minimind.errors import ConfigError
from minimind.model.adapters import AdapterSpec
from minimind.model.quantized_layers import quantization_obstacle
from minimind.weights.adapter_files import open_adapter
from minimind.weights.adapters import AdapterSource, FreshAdapter, fresh_spec
from minimind.weights.quantized import QuantizedSource
from minimind.weights.sources import WeightSource

NO_QUANTIZATION = "none"
ADAPTER_FILES = "adapter"
# Flags that an adapter's files answer.
_IN_FILES = ("lora_rank", "lora_alpha", "use_dora", "use_rslora")
# Flags that mean something for new adapters only, and for any.
_FRESH = ("lora_targets", "lora_init")
_ANY = (
    *("lora_alpha", "lora_dropout", "lora_targets", "use_dora", "use_rslora", "lora_init", "lora_reference"),
    *("quantize", "merge"),
)


def open_adapters(
    settings: Settings, base: WeightSource, ds_config: Mapping[str, Any], device: torch.device
) -> tuple[Settings, AdapterSource | None]:
    """The adapters that train, and the settings with what their files say; None if the weights train.

    Args:
        base: the weights that get adapters.
        ds_config: the policy's resolved DeepSpeed configuration.
        device: of this rank.

    Raises:
        ConfigError: flags that contradict each other, the files or the model.
        WeightsError: the files cannot be read, or do not fit the weights.
    """
    config = settings.config.adapters
    if config.lora_dropout >= 1:
        raise ConfigError(f"--lora_dropout {config.lora_dropout:g} is not below 1: adapters would get no input")
    if config.from_adapter or config.lora_rank:
        _check_run(settings, ds_config)
    if config.from_adapter:
        settings, saved = _from_files(settings, base, Path(config.from_adapter))
        _check_quantization(settings, saved.spec, ds_config, device)
        return settings, saved
    if settings.explicit("lora_reference") and config.lora_reference == "start":
        raise ConfigError("--lora_reference start needs --from_adapter, the adapter that the run starts from")
    if config.lora_rank is None:
        for name in _ANY:
            if settings.explicit(name):
                raise ConfigError(f"--{name} is for adapters; give --lora_rank or --from_adapter")
        return settings, None
    spec = fresh_spec(config, base.config)
    _check_quantization(settings, spec, ds_config, device)
    dtype = getattr(torch, settings.config.optimisation.dtype)
    source = FreshAdapter(spec, base, settings.config.data.seed, dtype, config.lora_init)
    return settings.with_defaults({"lora_alpha": spec.alpha}, "2 x lora_rank"), source


def _check_run(settings: Settings, ds_config: Mapping[str, Any]) -> None:
    """Refuse what a run with adapters cannot do."""
    config = settings.config
    # From NVMe DeepSpeed reads a few tensors at a time, and adapters need each block as one unit.
    if swaps_to_nvme(ds_config):
        raise ConfigError("adapters do not train with states or weights on NVMe; use ds_configs/zero3_offload.json")
    if config.adapters.lora_reference == "start" and config.model.reference_weight:
        raise ConfigError("--lora_reference start and --reference_weight both name the reference; drop one of the two")
    if config.engine.reference_update:
        raise ConfigError(
            "--reference_update moves all weights of a reference, and adapters train none of them; drop it, or train "
            "without adapters"
        )
    # It makes the update of a hidden matrix orthogonal; an adapter is a product of two factors.
    if config.optimisation.optimizer == "muon":
        raise ConfigError("--optimizer muon is for whole matrices, and adapters are products of two; give adamw")


def _check_quantization(
    settings: Settings, spec: AdapterSpec, ds_config: Mapping[str, Any], device: torch.device
) -> None:
    """Refuse 4-bit weights where they cannot be computed with."""
    if settings.config.adapters.quantize == NO_QUANTIZATION:
        return
    flag = f"--quantize {settings.config.adapters.quantize}"
    if spec.dora:
        raise ConfigError(f"{flag}: DoRA computes the lengths of a weight's rows in each step; drop --use_dora")
    if not has_plain_shards(ds_config):
        raise ConfigError(f"{flag}: ZeRO++ would quantize the 4-bit weights again; use ds_configs/zero3.json")
    if problem := quantization_obstacle(device, getattr(torch, settings.config.optimisation.dtype)):
        raise ConfigError(f"{flag}: {problem}")


def base_source(config: JobConfig, base: WeightSource) -> WeightSource:
    """The base as a policy holds it: in 4 bits if --quantize says so."""
    if config.adapters.quantize == NO_QUANTIZATION:
        return base
    return QuantizedSource(base, getattr(torch, config.optimisation.dtype))


def _from_files(settings: Settings, base: WeightSource, path: Path) -> tuple[Settings, AdapterSource]:
    for name in _FRESH:
        if settings.explicit(name):
            raise ConfigError(f"--{name} is for new adapters; --from_adapter {path} has its own: drop one of the two")
    source = open_adapter(path, base, settings.config.adapters.lora_dropout)
    spec = source.spec
    if spec.stacks and spec.dropout:
        raise ConfigError(f"--lora_dropout: {path} has adapters of stacked experts, which have no dropout; drop it")
    found = dict(zip(_IN_FILES, (spec.rank, spec.alpha, spec.dora, spec.rslora), strict=True))
    for name, value in found.items():
        if settings.explicit(name) and settings.values[name] != value:
            raise ConfigError(f"--{name} is {settings.values[name]}, but {path} has {value}; omit the flag")
    return settings.with_values(found, ADAPTER_FILES), source
