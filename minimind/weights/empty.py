"""Models without weights: the one place that makes a model before its tensors are there.

    configuration -> empty_model -> parameters on the meta device (shapes only), buffers computed as they should be

Buffers are real, because nothing would ever fill them: Hugging Face's models compute their rotary tables when they are
made.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights


def empty_model(config: PretrainedConfig) -> PreTrainedModel:
    """A model of this configuration with parameters on the meta device and buffers on the CPU, tied as it says."""
    with _parameters_on_meta():
        return uninitialized_model(config, torch.float32)


def uninitialized_model(config: PretrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """A model whose parameters hold whatever memory held: every one of them is about to be filled."""
    with no_init_weights():
        model = AutoModelForCausalLM.from_config(copy.deepcopy(config), dtype=dtype)
    model.tie_weights()
    return model


def tensor_shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Shapes of all that a model is saved with: parameters, each tied one once under its first name, and buffers."""
    saved = model.state_dict(keep_vars=True)
    named = {**dict(model.named_parameters()), **{n: b for n, b in model.named_buffers() if n in saved}}
    return {name: tuple(tensor.shape) for name, tensor in named.items()}


@torch.no_grad()
def plain_model(config: PretrainedConfig, tensors: Mapping[str, Tensor]) -> PreTrainedModel:
    """A model that is whole on this process, around the tensors given (not copied), in eval mode.

    Args:
        config: not changed.
        tensors: all of `tensor_shapes`, under its names.
    """
    model = empty_model(config)
    # Tied names hold one parameter; whichever name the tensor came under, it goes to all of them.
    first_name = {id(parameter): name for name, parameter in model.named_parameters()}
    for name, old in list(model.named_parameters(remove_duplicate=False)):
        tensor = tensors[first_name[id(old)]]
        _replace(model, name, nn.Parameter(tensor, requires_grad=tensor.is_floating_point()))
    for name, buffer in model.named_buffers():
        if name in tensors:
            buffer.copy_(tensors[name])
    model.tie_weights()
    return model.eval()


def restore_buffers(model: PreTrainedModel) -> None:
    """Put a model's computed buffers back as they should be, after an engine has cast them to its precision."""
    saved = set(model.state_dict())
    current = dict(model.named_buffers())
    for name, buffer in empty_model(model.config).named_buffers():
        if name not in saved:
            _replace(model, name, buffer.to(current[name].device))


def _replace(model: nn.Module, name: str, value: Any) -> None:
    path, _, last = name.rpartition(".")
    setattr(model.get_submodule(path), last, value)


@contextlib.contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Send each parameter to the meta device as it is registered; its memory is never touched."""
    original = nn.Module.register_parameter

    def register(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None and not parameter.is_meta:
            parameter = nn.Parameter(parameter.to("meta"), requires_grad=parameter.requires_grad)
        original(module, name, parameter)

    nn.Module.register_parameter = register  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        nn.Module.register_parameter = original  # type: ignore[method-assign]
