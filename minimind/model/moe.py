"""Mixture of experts: router, stacked experts, and the auxiliary loss that keeps the experts busy.

    x (T, H) -> router scores (T, E) -> top k experts per token -> experts -> weighted sum (T, H)

The experts are stacked tensors (E, out, in), and every forward touches all of them in one order, whichever tokens a
rank has. Separate modules would be gathered (ZeRO-3) and reduced (ZeRO-2) in an order that depends on the data:
ranks would hang, or train with wrong gradients and no error.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers.activations import ACT2FN

from minimind.model.configuration import MiniMindConfig
from minimind.model.grouped_linear import Groups, grouped_linear
from minimind.model.layers import FeedForward
from minimind.model.packed_attention import PackLayout
from minimind.native import ops


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenRows:
    """Which rows (sequences) the flattened tokens belong to, so that router statistics count each row's real tokens.

    A pack holds the prefix that two rows share only once; it counts for both, and padding counts for none. That
    makes packed, packed without sharing and padded agree.

    Attributes:
        pack: the pack's layout, or None for a padded batch.
        mask: (B, T) float32, 1 for a real token, for a padded batch; None for a pack.
    """

    pack: PackLayout | None = None
    mask: Tensor | None = None

    def sums(self, values: Tensor) -> Tensor:
        """Sum per row of values (tokens, E) float32 -> (R, E); a pack's rows come as chosen, rejected, chosen, ..."""
        if self.pack is None:
            assert self.mask is not None
            return (values.view(*self.mask.shape, -1) * self.mask[..., None]).sum(1)
        lengths = self.pack.lengths(values.device)
        # To check the lengths it would wait for the GPU.
        sums = torch.segment_reduce(values, "sum", lengths=lengths, initial=0, unsafe=True)
        prefix, chosen, rejected = sums.view(-1, 3, values.shape[-1]).unbind(1)
        return torch.stack((prefix + chosen, prefix + rejected), dim=1).flatten(0, 1)


def router_aux_loss(config: MiniMindConfig, scores: Tensor, experts: Tensor, rows: TokenRows) -> Tensor:
    """Load-balancing loss of one layer (Fedus et al., 2021), already multiplied by its coefficient.

    Args:
        scores: (tokens, E) float32, the router's softmax.
        experts: (tokens, k) int64, the chosen experts.
        rows: which tokens count, and for which row.

    Returns: a scalar, float32. With `seq_aux` the mean over rows of each row's own loss (MiniMind2), else one loss
        over the tokens of all rows (MiniMind-3, which leaves the mean over k out).
    """
    chosen = F.one_hot(experts, config.num_experts).sum(1).float()
    chosen_sums, score_sums = rows.sums(chosen), rows.sums(scores)
    k = config.num_experts_per_tok
    tokens = chosen_sums.sum(-1, keepdim=True) / k
    if config.seq_aux:
        load = chosen_sums / tokens * (config.num_experts / k)
        return (load * (score_sums / tokens)).sum(-1).mean() * config.router_aux_loss_coef
    total = tokens.sum()
    load = chosen_sums.sum(0) / total
    if config.generation == 2:
        load = load / k
    return (load * (score_sums.sum(0) / total)).sum() * config.num_experts * config.router_aux_loss_coef


class Experts(nn.Module):
    """E SwiGLU networks as three stacked tensors (E, out, in)."""

    def __init__(self, config: MiniMindConfig) -> None:
        super().__init__()
        experts, inner, hidden = config.num_experts, config.moe_intermediate_size, config.hidden_size
        self.gate_proj = nn.Parameter(torch.empty(experts, inner, hidden))
        self.up_proj = nn.Parameter(torch.empty(experts, inner, hidden))
        self.down_proj = nn.Parameter(torch.empty(experts, hidden, inner))
        self.act = ACT2FN[config.hidden_act]
        self.is_silu = config.hidden_act == "silu"

    def forward(self, x: Tensor, ends: Tensor) -> Tensor:
        """x (tokens, H) sorted by expert, ends (E,) int32 where each one's rows end -> (tokens, H) in that order."""
        groups = Groups(ends)
        gate, up = grouped_linear(x, self.gate_proj, groups), grouped_linear(x, self.up_proj, groups)
        inner = ops.swiglu(gate, up) if self.is_silu else self.act(gate) * up
        return grouped_linear(inner, self.down_proj, groups)


def sum_of(copies: Tensor) -> Tensor:
    """Sum over the second dimension, (N, k, H) -> (N, H), in its order."""
    # torch's own sum takes ten times as long on a CPU in bfloat16, where k is small.
    return functools.reduce(torch.add, copies.unbind(1))


class _TakeRows(torch.autograd.Function):
    """Rows of x by index, each of them k times; the gradient is gathered by index as well, and then summed.

    torch's own would be added up in memory: on a GPU in an order that changes from run to run, or after a sort.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor, taken_to: Tensor, k: int) -> Tensor:
        """x (N, H), index (kN,), and where each row's k copies went, row after row: taken_to (kN,) -> (kN, H)."""
        ctx.save_for_backward(taken_to)
        ctx.k = k
        return x.index_select(0, index)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (taken_to,) = ctx.saved_tensors
        copies = grad.index_select(0, taken_to).unflatten(0, (-1, ctx.k))
        return sum_of(copies), None, None, None


class MixtureOfExperts(nn.Module):
    """Top-k routed experts, and for MiniMind2 experts that every token passes."""

    def __init__(self, config: MiniMindConfig) -> None:
        super().__init__()
        self.config = config
        self.gate = nn.Linear(config.hidden_size, config.num_experts, bias=False)
        self.experts = Experts(config)
        self.shared_experts = nn.ModuleList(
            FeedForward(config, config.moe_intermediate_size) for _ in range(config.n_shared_experts)
        )

    def forward(self, x: Tensor, rows: TokenRows) -> tuple[Tensor, Tensor]:
        """x (B, T, H) -> the same shape, and this layer's auxiliary loss (0 in eval mode, as in MiniMind)."""
        config, flat = self.config, x.flatten(0, 1)
        scores = self.gate(flat).float().softmax(-1)
        weights, experts = scores.topk(config.num_experts_per_tok, dim=-1, sorted=False)
        if config.norm_topk_prob and (config.generation == 3 or config.num_experts_per_tok > 1):
            weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)

        # A place is one choice of one token, (tokens * k). Sorted, an expert's places lie together; where they end is
        # never told to the host, which would wait for a GPU to know it.
        sorted_experts, by_expert = experts.flatten().sort(stable=True)
        every_expert = torch.arange(config.num_experts, device=x.device)
        ends = torch.searchsorted(sorted_experts, every_expert, right=True, out_int32=True)
        places = torch.empty_like(by_expert)
        places.scatter_(0, by_expert, torch.arange(len(by_expert), device=x.device))

        k = config.num_experts_per_tok
        routed = self.experts(_TakeRows.apply(flat, by_expert // k, places, k), ends)
        chosen = _TakeRows.apply(routed, places, by_expert, 1).unflatten(0, (-1, k))
        out = sum_of(chosen * weights[..., None].to(x.dtype))
        for shared in self.shared_experts:
            out = shared(flat, out)

        aux_loss = scores.new_zeros(())
        if self.training and config.router_aux_loss_coef > 0:
            aux_loss = router_aux_loss(config, scores, experts, rows)
        return out.view_as(x), aux_loss
