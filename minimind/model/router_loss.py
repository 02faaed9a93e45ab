"""The auxiliary loss that balances the load of a mixture's experts, over the real tokens of packs and padded rows.

    MiniMind:      the backbone computes it, with its coefficient (`moe.py`)
    transformers:  router logits of each layer -> the family's own load_balancing_loss_func -> x coefficient

A token counts once for each row that it belongs to: the prefix that two rows of a pack share counts twice, padding
never. So packs and padded rows give the same loss. It is a loss of training only: in eval mode it is 0.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from minimind.errors import PackError
from minimind.model.device_transfer import to_device
from minimind.model.family import family_of
from minimind.model.packed_attention import PackSegments

# Names of the coefficient in configurations.
_COEFFICIENTS = ("router_aux_loss_coef", "aux_loss_coef", "moe_loss_weight")
_ARGUMENTS = ["gate_logits", "num_experts", "top_k", "attention_mask"]


def has_router_loss(config: PretrainedConfig) -> bool:
    """Whether models of this configuration can compute the loss."""
    if family_of(config).scales_router_loss:
        return bool(getattr(config, "use_moe", False))
    return _function(AutoModelForCausalLM._model_mapping[type(config)]) is not None


def router_coefficient(config: PretrainedConfig, given: float | None) -> float:
    """The coefficient of a run: `given` (--router_aux_loss_coef), else the configuration's; 0 where there is no loss.

    As in transformers, a configuration has the loss only with `output_router_logits`.
    """
    return _coefficient(config, given) if has_router_loss(config) else 0.0


def _coefficient(config: PretrainedConfig, given: float | None) -> float:
    if given is not None:
        return given
    if not family_of(config).scales_router_loss and not getattr(config, "output_router_logits", False):
        return 0.0
    # Dbrx has it in the configuration of its experts.
    owners = [config, *(value for value in vars(config).values() if isinstance(value, PretrainedConfig))]
    found = (getattr(owner, name, None) for owner in owners for name in _COEFFICIENTS)
    return float(next((value for value in found if value is not None), 0.0))


class RouterLoss:
    """The auxiliary loss of one model.

    Args:
        model: its configuration must be its own copy: the coefficient is written there.
        given: the coefficient; None for that of the configuration.
    """

    def __init__(self, model: PreTrainedModel, given: float | None = None) -> None:
        self._model = model
        self._scaled = family_of(model.config).scales_router_loss
        self._function = _function(type(model))
        # Not by `has_router_loss`: some models keep only the text half of their configuration.
        self.coefficient = 0.0 if self._function is None else _coefficient(model.config, given)
        if self._scaled and given is not None:
            model.config.router_aux_loss_coef = given

    def options(self, training: bool) -> dict[str, bool]:
        """Keyword arguments with which a forward returns what the loss needs, and only then."""
        return {} if self._function is None else {"output_router_logits": self._wanted(training)}

    def of_pack(self, out: Any, pack: PackSegments, training: bool) -> Tensor:
        """The loss of a backbone's output over a pack, scalar float32.

        Raises:
            PackError: the family computes the loss from something else than the router logits, or returns none.
        """
        if self._scaled or not self._wanted(training):
            return _scalar(out)
        assert self._function is not None
        if list(inspect.signature(self._function).parameters) != _ARGUMENTS:
            raise PackError("its auxiliary loss needs more than its router logits")
        logits = out.router_logits
        if not logits:  # transformers records them with hooks, which compiled blocks may not call
            raise PackError("its layers return no router logits")
        weights = _rows_of_tokens(pack, logits[0].device)
        loss = self._function(logits, self._model.num_experts, self._model.num_experts_per_tok, weights[None])
        return loss.float() * self.coefficient

    def of_rows(self, out: Any, training: bool) -> Tensor:
        """The loss of the model's own forward over padded rows, scalar float32."""
        if self._scaled or not self._wanted(training):
            return _scalar(out)
        return _scalar(out) * self.coefficient

    def _wanted(self, training: bool) -> bool:
        return training and not self._scaled and self.coefficient > 0


def _function(model_class: type) -> Callable[..., Tensor] | None:
    """The load balancing loss of a family, a function of its module; None for a family without one."""
    return getattr(sys.modules[model_class.__module__], "load_balancing_loss_func", None)


def _rows_of_tokens(pack: PackSegments, device: torch.device) -> Tensor:
    """Number of rows that each token of a pack belongs to, (T,) float32: 2 for a prefix with two continuations."""
    counts = np.tile(np.array([2, 1, 1], np.float32), len(pack.segments))
    return to_device(counts.repeat(np.ravel(pack.segments)), device)


def _scalar(out: Any) -> Tensor:
    aux_loss = getattr(out, "aux_loss", None)
    if isinstance(aux_loss, Tensor):
        return aux_loss
    first = next(value for value in out.values() if isinstance(value, Tensor))
    return torch.zeros((), device=first.device)
