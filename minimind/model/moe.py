"""Mixture of experts: router, stacked experts, and the auxiliary loss that balances the load of the experts.

    x (T, H) -> router scores (T, E) -> top k experts per token -> experts -> weighted sum (T, H)

The experts are stacked tensors (E, out, in). Every forward uses all stacks in the same order, for any tokens. With a
module for each expert, ZeRO-3 would gather and ZeRO-2 would reduce parameters in an order that depends on the tokens of
each rank: ranks would hang, or train with wrong gradients and no error.
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
from minimind.model.packed_attention import PackSegments
from minimind.native import ops


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenRows:
    """The rows (sequences) that the flattened tokens belong to, for the router statistics of each row.

    A pack contains the shared prefix of two rows once, but it counts for both rows. Padding counts for none. So the
    auxiliary loss is the same for packs with and without shared prefixes and for padded batches.

    Attributes:
        pack: the segments of a pack, or None for a padded batch.
        mask: (B, T) float32, 1 for a token and 0 for padding; None for a pack.
    """

    pack: PackSegments | None = None
    mask: Tensor | None = None

    def row_sums(self, values: Tensor) -> Tensor:
        """Sums of values (tokens, E) float32 over each row: (R, E). Rows of a pack: chosen, rejected, chosen, ..."""
        if self.pack is None:
            assert self.mask is not None
            return (values.view(*self.mask.shape, -1) * self.mask[..., None]).sum(1)
        lengths = self.pack.lengths(values.device)
        # unsafe: without it torch checks the lengths on the host and waits for the GPU.
        sums = torch.segment_reduce(values, "sum", lengths=lengths, initial=0, unsafe=True)
        prefix, chosen, rejected = sums.view(-1, 3, values.shape[-1]).unbind(1)
        return torch.stack((prefix + chosen, prefix + rejected), dim=1).flatten(0, 1)


def router_aux_loss(config: MiniMindConfig, scores: Tensor, experts: Tensor, rows: TokenRows) -> Tensor:
    """Load-balancing loss of one layer (Fedus et al., 2021), multiplied by its coefficient.

    Args:
        scores: (tokens, E) float32, the router's softmax.
        experts: (tokens, k) int64, the chosen experts.
        rows: the row of each token.

    Returns: a float32 scalar. With `seq_aux` (MiniMind2) the mean of the losses of the rows that have tokens, else one
        loss over the tokens of all rows. MiniMind-3 does not divide the load by k.
    """
    # How often each token chose each expert, 0 or 1: (tokens, E).
    chosen = F.one_hot(experts, config.num_experts).sum(1).float()
    chosen_sums, score_sums = rows.row_sums(chosen), rows.row_sums(scores)
    k = config.num_experts_per_tok
    # Every token chose k experts, so this is the number of tokens of each row: (R, 1).
    tokens = chosen_sums.sum(-1, keepdim=True) / k
    if config.seq_aux:
        # A row that stands alone in a pack has an empty row beside it, which adds nothing and must not count.
        number = (tokens > 0).sum().clamp(min=1)
        tokens = tokens.clamp(min=1)
        load = chosen_sums / tokens * (config.num_experts / k)
        return (load * (score_sums / tokens)).sum() / number * config.router_aux_loss_coef
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
        # Initialised by MiniMindPreTrainedModel._init_weights.
        self.gate_proj = nn.Parameter(torch.empty(experts, inner, hidden))
        self.up_proj = nn.Parameter(torch.empty(experts, inner, hidden))
        self.down_proj = nn.Parameter(torch.empty(experts, hidden, inner))
        self.act = ACT2FN[config.hidden_act]
        self.is_silu = config.hidden_act == "silu"

    def forward(self, x: Tensor, ends: Tensor) -> Tensor:
        """x (N, H) sorted by expert, ends (E,) int32 = index after each expert's last row -> (N, H), same order."""
        groups = Groups(ends)
        gate, up = grouped_linear(x, self.gate_proj, groups), grouped_linear(x, self.up_proj, groups)
        inner = ops.swiglu(gate, up) if self.is_silu else self.act(gate) * up
        return grouped_linear(inner, self.down_proj, groups)


def sum_copies(copies: Tensor) -> Tensor:
    """Sum over the second dimension in order of its index: (N, k, H) -> (N, H)."""
    # For small k in bfloat16 on a CPU, torch's own sum takes ten times as long.
    return functools.reduce(torch.add, copies.unbind(1))


class _GatherRows(torch.autograd.Function):
    """Copies rows of x by index, each row k times. The gradient gathers the copies of each row and sums them.

    torch's gradient of an index adds into memory, on a GPU in an order that changes from run to run or after a sort.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor, copies: Tensor, k: int) -> Tensor:
        """x (N, H), index (kN,) = row of each copy, copies (kN,) = positions of each row's k copies -> (kN, H)."""
        ctx.save_for_backward(copies)
        ctx.k = k
        return x.index_select(0, index)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (copies,) = ctx.saved_tensors
        return sum_copies(grad.index_select(0, copies).unflatten(0, (-1, ctx.k))), None, None, None


class MixtureOfExperts(nn.Module):
    """Top-k routed experts and, in MiniMind2, shared experts that process every token."""

    def __init__(self, config: MiniMindConfig) -> None:
        super().__init__()
        self.config = config
        self.gate = nn.Linear(config.hidden_size, config.num_experts, bias=False)
        self.experts = Experts(config)
        self.shared_experts = nn.ModuleList(
            FeedForward(config, config.moe_intermediate_size) for _ in range(config.n_shared_experts)
        )

    def forward(self, x: Tensor, rows: TokenRows) -> tuple[Tensor, Tensor]:
        """x (B, T, H) -> (B, T, H), and the auxiliary loss of this layer (0 in eval mode, as in MiniMind)."""
        config, flat = self.config, x.flatten(0, 1)
        # Softmax, weights and auxiliary loss are computed in float32.
        scores = self.gate(flat).float().softmax(-1)
        weights, experts = scores.topk(config.num_experts_per_tok, dim=-1, sorted=False)
        if config.norm_topk_prob and (config.generation == 3 or config.num_experts_per_tok > 1):
            weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)

        # An assignment is one of the k experts of one token; there are tokens * k. Sorted by expert, the assignments of
        # an expert are consecutive. Their ends are computed on the device, so that the host does not wait for a GPU.
        sorted_experts, by_expert = experts.flatten().sort(stable=True)
        every_expert = torch.arange(config.num_experts, device=x.device)
        ends = torch.searchsorted(sorted_experts, every_expert, right=True, out_int32=True)
        # The inverse permutation: the position of each assignment in the sorted order.
        positions = torch.empty_like(by_expert)
        positions.scatter_(0, by_expert, torch.arange(len(by_expert), device=x.device))

        k = config.num_experts_per_tok
        routed = self.experts(_GatherRows.apply(flat, by_expert // k, positions, k), ends)
        chosen = _GatherRows.apply(routed, positions, by_expert, 1).unflatten(0, (-1, k))
        out = sum_copies(chosen * weights[..., None].to(x.dtype))
        for shared in self.shared_experts:
            out = shared(flat, out)

        aux_loss = scores.new_zeros(())
        if self.training and config.router_aux_loss_coef > 0:
            aux_loss = router_aux_loss(config, scores, experts, rows)
        return out.view_as(x), aux_loss
