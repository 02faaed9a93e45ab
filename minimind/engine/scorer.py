"""The module that the engines of policy and reference wrap: computes the log-probs of a batch's targets.

    PackedPairs -> backbone over the pack -> hidden states of K positions -> output head in blocks -> (K,) float32
    PaddedPairs -> the model's own forward -> logits -> (K,) float32      for models that cannot compute packs
    PlainRow    -> the same over one row alone                            the oracle of both
    ModelUse    -> any computation with the model, e.g. generation        its result, no log-probs

All computation is inside one `forward`, because ZeRO-3 gathers weights only there.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from minimind.data.packs import Batch, PackedPairs, PaddedPairs
from minimind.engine.plain_row import PlainRow
from minimind.errors import PackError
from minimind.model.family import family_of
from minimind.model.linear_layers import is_linear, use_kernels
from minimind.model.own_attention import AttentionSwitch
from minimind.model.packed_attention import NATIVE, PackSegments
from minimind.model.router_loss import RouterLoss
from minimind.objective.log_probs import (
    log_collisions,
    logits_distributions,
    target_distributions,
    target_log_probs,
)


@dataclasses.dataclass(kw_only=True)
class ModelUse:
    """A computation with the model, without gradient, as one forward of the engine.

    Attributes:
        compute: gets the model, with the attention that transformers chose for it.
        result: of `compute`, after the forward.
    """

    compute: Callable[[PreTrainedModel], Any]
    result: Any = None


class PairScorer(nn.Module):
    """A causal language model that scores pairs.

    Args:
        model: the model.
        attention: attention backend over packs, a name of `packed_attention.BACKENDS`.
        router_aux_loss_coef: coefficient of a mixture's auxiliary loss; None: as the model's configuration says.
    """

    def __init__(
        self, model: PreTrainedModel, attention: str = NATIVE, router_aux_loss_coef: float | None = None
    ) -> None:
        super().__init__()
        self.model = model
        self.attention = attention
        self.collisions = self.distributions = False
        self._switch = AttentionSwitch.of(model)
        # A model without attention (RWKV, xLSTM) may know neither a cache nor a mask.
        parameters = inspect.signature(model.forward).parameters
        self._options = {"use_cache": False} if "use_cache" in parameters else {}
        self._obstacle = _head_obstacle(model)
        if not family_of(model.config).has_own_linear_layers:
            use_kernels(model)
        self._router_loss = RouterLoss(model, router_aux_loss_coef)

    def forward(self, batch: Batch | ModelUse) -> tuple[Tensor, Tensor]:
        """Log-probs of the batch's targets, (K,) float32, and the model's auxiliary loss, scalar float32.

        A `ModelUse` gets its result and has no targets.

        Other columns make them (K, 2), (K, 3) or (K, 4), without gradient, each of the distribution of all tokens at
        the target's position: with `collisions` the log of the sum of squared probabilities; with `distributions` the
        entropy, and 1 where no token is likelier than the target, else 0.

        Raises:
            PackError: a pack, and the model's attention or head does something that packs do not have.
        """
        if isinstance(batch, PackedPairs):
            return self._packed(batch)
        self._switch.own()
        if isinstance(batch, ModelUse):
            batch.result = batch.compute(self.model)
            return torch.zeros(0), torch.zeros(())
        options = {**self._options, **self._router_loss.options(self.training)}
        if isinstance(batch, PlainRow):
            out = self.model(input_ids=batch.token_ids[None], **options)
        else:
            assert isinstance(batch, PaddedPairs)
            out = self.model(input_ids=batch.token_ids, attention_mask=batch.attention_mask, **options)
        logits = out.logits.flatten(0, 1)[batch.target_positions].float()
        columns = [logits.log_softmax(-1).gather(1, batch.target_ids[:, None])[:, 0]]
        if self.collisions:
            columns.append((2 * logits.detach().log_softmax(-1)).logsumexp(-1))
        if self.distributions:
            columns += logits_distributions(logits.detach(), batch.target_ids)
        return _joined(columns), self._router_loss.of_rows(out, self.training)

    def _packed(self, batch: PackedPairs) -> tuple[Tensor, Tensor]:
        if self._obstacle:
            raise PackError(self._obstacle)
        self._switch.packed()
        # MiniMind's own backbone then computes the end of its last block at the targets alone.
        selects = family_of(self.model.config).backbone_selects_positions
        pack = PackSegments(batch.segments, self.attention)
        out = self.model.base_model(
            input_ids=batch.token_ids[None],
            position_ids=batch.position_ids[None],
            use_cache=False,
            pack=pack,
            **self._router_loss.options(self.training),
            **({"keep": batch.target_positions} if selects else {}),
        )
        hidden = out.last_hidden_state.squeeze(0)
        if not selects:
            hidden = hidden.index_select(0, batch.target_positions)
        head = self.model.get_output_embeddings()
        bias = getattr(head, "bias", None)
        arguments = hidden, head.weight, batch.target_ids, bias
        if self.distributions:
            log_probs, *distributions = target_distributions(*arguments)
        else:
            log_probs, distributions = target_log_probs(*arguments), []
        collisions = [log_collisions(hidden, head.weight, bias)] if self.collisions else []
        return _joined([log_probs, *collisions, *distributions]), self._router_loss.of_pack(out, pack, self.training)


def _joined(columns: list[Tensor]) -> Tensor:
    """(K,) columns beside each other; a single one stays (K,)."""
    return torch.stack(columns, 1) if len(columns) > 1 else columns[0]


def _head_obstacle(model: PreTrainedModel) -> str:
    """Why the output head cannot be computed from its weight and bias alone; empty if it can.

    A scale of 1 or a bias of 0 would change no log-prob before the first update, but its gradient would be missing.
    """
    head = model.get_output_embeddings()
    if not is_linear(head):
        return f"its output head is not a linear layer ({type(head).__name__})"
    known = {id(parameter) for module in (model.base_model, head) for parameter in module.parameters()}
    others = [name for name, parameter in model.named_parameters() if id(parameter) not in known]
    return f"it has parameters outside its backbone and its head ({others[0]})" if others else ""
