"""Models made from a configuration alone, and models made around given tensors.

    configuration -> empty_model -> parameters on the meta device (shapes only), buffers computed on the CPU
    configuration, tensors -> model_from_tensors -> a complete model on this process

Buffers are always computed, because no weight file holds them: Hugging Face's models compute their rotary tables when
they are constructed.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from minimind.model.quantized_layers import use_packed_weights


def empty_model(config: PretrainedConfig) -> PreTrainedModel:
    """A model with parameters on the meta device and buffers on the CPU, with tied weights as in its configuration."""
    with _parameters_on_meta():
        return uninitialized_model(config, torch.float32)


def uninitialized_model(config: PretrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """A model with uninitialized parameters: the caller must fill every one of them."""
    with no_init_weights():
        # The model keeps the configuration object and writes its dtype and attention implementation into it.
        model = AutoModelForCausalLM.from_config(copy.deepcopy(config), dtype=dtype)
    model.tie_weights()
    return model


def tensor_shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Shapes of all tensors in a model's checkpoint: parameters (tied ones once, by their first name) and buffers."""
    saved = model.state_dict(keep_vars=True)
    # A buffer that is not in the state dict is computed by the model itself.
    named = {**dict(model.named_parameters()), **{n: b for n, b in model.named_buffers() if n in saved}}
    return {name: tuple(tensor.shape) for name, tensor in named.items()}


@torch.no_grad()
def model_from_tensors(
    config: PretrainedConfig, tensors: Mapping[str, Tensor], packed_layers: Collection[str] = ()
) -> PreTrainedModel:
    """A complete model on this process, in eval mode. The tensors become its parameters without a copy.

    Args:
        config: the model's configuration; it is not changed.
        tensors: one tensor for each name of `tensor_shapes`.
        packed_layers: the layers whose weights are packed in 4 bits.

    Raises:
        KeyError: a parameter has no tensor.
    """
    model = empty_model(config)
    use_packed_weights(model, packed_layers)
    # Several names may share one tied parameter. `tensors` has it under the first name; all names must get it.
    first_name = {id(parameter): name for name, parameter in model.named_parameters()}
    for name, old in list(model.named_parameters(remove_duplicate=False)):
        tensor = tensors[first_name[id(old)]]
        # Some parameters are constants, for example Pegasus' sinusoidal positions.
        trains = old.requires_grad and tensor.is_floating_point()
        _replace(model, name, nn.Parameter(tensor, requires_grad=trains))
    for name, buffer in model.named_buffers():
        if name in tensors:
            buffer.copy_(tensors[name])
    # The loop above gave each name a parameter object of its own; tying makes them one object again.
    model.tie_weights()
    return model.eval()


def restore_computed_buffers(model: PreTrainedModel) -> None:
    """Compute again, in their own dtype, the buffers that a DeepSpeed engine has cast to the training dtype.

    bfloat16 rotary tables would give neighbouring positions the same angle. Buffers that transformers makes in the
    model's dtype (XGLM's positions) stay in it.
    """
    saved = set(model.state_dict())
    current = dict(model.named_buffers())
    with _parameters_on_meta(), no_init_weights():
        # By class: the model of a composite configuration may keep the text half alone, which names no model.
        fresh = type(model)._from_config(copy.deepcopy(model.config), dtype=next(model.parameters()).dtype)
    for name, buffer in fresh.named_buffers():
        if name not in saved:
            _replace(model, name, buffer.to(current[name].device))


def _replace(model: nn.Module, name: str, value: Any) -> None:
    """Set an attribute by its full name, `layers.0.mlp.weight`."""
    path, _, last = name.rpartition(".")
    setattr(model.get_submodule(path), last, value)


@contextlib.contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Move each parameter to the meta device when a module registers it.

    `torch.device("meta")` would put the buffers there as well. A weight matrix has CPU memory only until it is
    registered. Nothing writes to this memory, so the operating system never provides it.
    """
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
