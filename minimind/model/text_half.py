"""The text half of a model that also reads images or sound: it trains, and the rest is frozen.

    model -> freeze_other_parts -> requires_grad of everything that a text does not reach is off; what was frozen

Without this DeepSpeed would give the other parts gradients of 0, and the optimizer would still decay their weights.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

# Other kinds of input, in the names of configurations' fields and of modules.
_OTHER_INPUT = re.compile(r"vision|visual|image|img|audio|speech|video")


def freeze_other_parts(model: PreTrainedModel) -> dict[str, int]:
    """Freeze the parameters outside the text half of a composite model.

    Returns: name of each part that was frozen -> its number of parameter tensors; empty for a model of text alone.
    """
    frozen = {name: parameter for name, parameter in _outside(model) if parameter.requires_grad}
    for parameter in frozen.values():
        parameter.requires_grad_(False)
    parts: dict[str, int] = {}
    for name in frozen:
        # model.vision_tower.layers.0.mlp.weight belongs to model.vision_tower.
        part = ".".join(name.split(".")[:2])
        parts[part] = parts.get(part, 0) + 1
    return parts


def _outside(model: PreTrainedModel) -> Iterator[tuple[str, nn.Parameter]]:
    """Names and parameters that a text does not reach."""
    kept = {id(parameter) for module in _text_modules(model) for parameter in module.parameters()}
    # Some models keep the parts for other inputs inside their backbone (Phi-4-multimodal, Git).
    mixed = any(isinstance(value, PretrainedConfig) and _OTHER_INPUT.search(name)
                for name, value in vars(model.config).items())  # fmt: skip
    for name, parameter in model.named_parameters():
        if id(parameter) not in kept or (mixed and _OTHER_INPUT.search(name)):
            yield name, parameter


def _text_modules(model: PreTrainedModel) -> list[nn.Module]:
    """The modules that compute a text: the whole model, unless its configuration has a text half."""
    if model.config.get_text_config() is model.config:
        return [model]
    embeddings = (model.get_input_embeddings(), model.get_output_embeddings())
    return [model.get_decoder(), *(module for module in embeddings if module is not None)]
