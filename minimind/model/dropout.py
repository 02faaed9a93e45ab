"""Dropout and other noise of training: found in a built model and turned off, whatever its configuration calls it.

    model -> turn_off_dropout -> the same model, deterministic in train mode; what was turned off

DPO compares the policy with a reference that has no dropout, so noise in the policy would be taken for a margin.
Models hold a probability in a module (`nn.Dropout`), in an attribute (`self.attention_dropout`), or read it from
their configuration in each forward, so all three are searched.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from torch.nn.modules.dropout import _DropoutNd
from transformers import PretrainedConfig, PreTrainedModel

# attention_dropout, attn_pdrop, hidden_dropout_prob, layerdrop, drop_path_rate; the noise on the router's inputs in
# Mixtral and Dbrx. Phi-3.5-MoE's `router_jitter_noise` is a threshold of its routing, in evaluation too: it stays.
_NAME = re.compile(r"drop|^jitter_noise$|^moe_jitter_eps$")
# Dropout of heads that a causal language model does not have.
_OTHER_HEADS = re.compile(r"classifier|summary")


def dropout_fields(config: PretrainedConfig) -> dict[str, float]:
    """Fields of a configuration, and of those in it, that hold a probability of dropout above 0."""
    found = {name: value for name, value in vars(config).items() if _is_dropout(name, value)}
    for value in vars(config).values():
        if isinstance(value, PretrainedConfig):
            found |= dropout_fields(value)
    return found


def turn_off_dropout(model: PreTrainedModel) -> dict[str, float]:
    """Set every dropout of a built model to 0; also in its configuration, which must be its own copy.

    Returns: name -> largest value that it had, for each name that had one above 0.
    """
    found: dict[str, float] = {}
    for holder, name, value in _settings(model):
        label = type(holder).__name__ if isinstance(holder, _DropoutNd) else name
        found[label] = max(value, found.get(label, 0.0))
        setattr(holder, name, 0.0)
    return found


def _settings(model: PreTrainedModel) -> Iterator[tuple[Any, str, float]]:
    """(holder, attribute, value) of each dropout above 0: in modules, and in the configurations that they refer to."""
    configs: dict[int, PretrainedConfig] = {}
    for module in model.modules():
        if isinstance(module, _DropoutNd) and module.p > 0:
            yield module, "p", module.p
        for name, value in list(vars(module).items()):
            if isinstance(value, PretrainedConfig):
                configs[id(value)] = value
            elif _is_dropout(name, value):
                yield module, name, value
    for config in configs.values():
        yield from ((owner, name, value) for owner in _nested(config) for name, value in _fields(owner))


def _nested(config: PretrainedConfig) -> Iterator[PretrainedConfig]:
    yield config
    for value in list(vars(config).values()):
        if isinstance(value, PretrainedConfig):
            yield from _nested(value)


def _fields(config: PretrainedConfig) -> list[tuple[str, float]]:
    return [(name, value) for name, value in vars(config).items() if _is_dropout(name, value)]


def _is_dropout(name: str, value: object) -> bool:
    return isinstance(value, float) and value > 0 and _NAME.search(name) is not None and not _OTHER_HEADS.match(name)
