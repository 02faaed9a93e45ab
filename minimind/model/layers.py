"""The parts of a MiniMind block: normalisation, rotary embedding, attention, feed-forward.

    normed x, residual (B, T, H) -> Attention -> residual + attention output
                                 -> FeedForward -> residual + feed-forward output

Shapes: B batch, T tokens, H hidden, D head dimension. A pack is a batch of one sequence (B = 1). The attention function
(`packed_attention.py`) decides which of its tokens attend to each other; the layers here do not.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from minimind.model.configuration import MiniMindConfig
from minimind.native import ops


class RMSNorm(nn.Module):
    """Root-mean-square normalisation over the last dimension (Zhang and Sennrich, 2019), computed in float32."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        return ops.rms_norm(x, self.weight, self.eps)


def can_fuse(x: Tensor, *layers: nn.Module) -> bool:
    """Whether one kernel may compute these layers of x from their weights, without calling the layers.

    Not if a layer has an adapter that is on, or a hook: ZeRO-3 gathers the weight of a layer in a hook that runs when
    the layer is called.
    """
    return ops.kernels_take(x) and not _has_any_global_hook() and all(map(_is_unmodified, layers))


def norm_with_residual(norm: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Normalised x, and x for the residual connection. If possible one kernel sums the two gradients of x."""
    if torch.is_grad_enabled() and isinstance(norm, RMSNorm) and can_fuse(x, norm):
        return ops.rms_norm_with_residual(x, norm.weight, norm.eps)
    return norm(x), x


def _is_unmodified(module: nn.Module) -> bool:
    if getattr(module, "disable_adapters", False) and not _has_hooks(module):
        # An adapter that is off: peft's layer has the weight of the layer that it holds.
        module = module.get_submodule("base_layer")
    return (
        (type(module) is Linear or type(module) is RMSNorm)
        and ops.kernels_take(module.weight)
        and not _has_hooks(module)
    )


def _has_hooks(module: nn.Module) -> bool:
    # torch has no public query for hooks. DeepSpeed and accelerate also replace `forward` on the instance.
    return bool(
        module._forward_pre_hooks
        or module._forward_hooks
        or module._backward_pre_hooks
        or module._backward_hooks
        or "forward" in module.__dict__
    )


class Linear(nn.Linear):
    """A linear map without bias."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return ops.linear(x, self.weight)


def rotary_frequencies(config: MiniMindConfig, device: torch.device) -> Tensor:
    """Rotation angle per position of each pair of channels, (D/2,) float32 (Su et al., 2021), with YaRN if configured.

    YaRN (Peng et al., 2023) divides the frequencies of slow channel pairs by `factor`, keeps those of fast pairs, and
    interpolates linearly between `beta_fast` and `beta_slow` rotations within the original context.

    Computed in each forward and not kept in a buffer, because an engine would cast a buffer to bfloat16, and a model
    constructed on the meta device would have an empty one.
    """
    half = config.head_dim // 2
    exponents = torch.arange(0, config.head_dim, 2, device=device, dtype=torch.float32) / config.head_dim
    frequencies = 1.0 / (config.rope_theta**exponents)
    yarn = config.yarn
    # As in MiniMind, YaRN applies only if the model's context is longer than the original one.
    if yarn is None or config.max_position_embeddings <= yarn["original_max_position_embeddings"]:
        return frequencies

    def channel_with_rotations(rotations: float) -> float:
        """Index (not rounded) of the channel pair that makes this many rotations within the original context."""
        length = yarn["original_max_position_embeddings"]
        return config.head_dim * math.log(length / (rotations * 2 * math.pi)) / (2 * math.log(config.rope_theta))

    low = max(math.floor(channel_with_rotations(yarn["beta_fast"])), 0)
    high = min(math.ceil(channel_with_rotations(yarn["beta_slow"])), half - 1)
    channels = torch.arange(half, device=device, dtype=torch.float32)
    # 0: keep the frequency, 1: divide it by the factor.
    stretched = ((channels - low) / max(high - low, 0.001)).clamp(0, 1)
    return frequencies * (1 - stretched + stretched / yarn["factor"])


def rotary_tables(config: MiniMindConfig, position_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the angles at positions (B, T) int64: two tensors (B, T, D/2) float32."""
    angles = position_ids[..., None].float() * rotary_frequencies(config, position_ids.device)
    scale = config.yarn["attention_factor"] if config.yarn else 1.0
    return angles.cos() * scale, angles.sin() * scale


class HeadNormRotary(RMSNorm):
    """Normalises each head, then applies the rotary embedding of its position, see `ops.rotate`."""

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:  # type: ignore[override]
        return ops.norm_rotate(x, self.weight, self.eps, *rotary)


class HeadRotary(nn.Module):
    """Applies the rotary embedding to each head without normalisation."""

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
        return ops.rotate(x, *rotary)


class Attention(nn.Module):
    """Grouped-query attention behind Hugging Face's attention interface; generation 3 normalises q and k per head."""

    def __init__(self, config: MiniMindConfig, layer_idx: int) -> None:
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = config.head_dim
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        self.scaling = self.head_dim**-0.5
        # Hugging Face's attention functions read num_key_value_groups and is_causal from the module.
        self.is_causal = True
        q_size = config.num_attention_heads * self.head_dim
        kv_size = config.num_key_value_heads * self.head_dim
        self.q_proj = Linear(config.hidden_size, q_size)
        self.k_proj = Linear(config.hidden_size, kv_size)
        self.v_proj = Linear(config.hidden_size, kv_size)
        self.o_proj = Linear(q_size, config.hidden_size)
        # The names are MiniMind's, because they name the weights. In both generations they apply the rotary embedding.
        normed = config.generation == 3
        self.q_norm: nn.Module = HeadNormRotary(self.head_dim, config.rms_norm_eps) if normed else HeadRotary()
        self.k_norm: nn.Module = HeadNormRotary(self.head_dim, config.rms_norm_eps) if normed else HeadRotary()
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        x: Tensor,
        residual: Tensor,
        rotary: tuple[Tensor, Tensor],
        attention_mask: Tensor | None,
        cache: Cache | None,
        keep: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """residual + attention output of the normalised x, both (B, T, H).

        With `keep` (K,) int64 only those positions of each sequence are computed: (B, K, H).
        """
        projections = self.q_proj, self.k_proj, self.v_proj
        if can_fuse(x, *projections):
            projected = ops.linears(x, *(projection.weight for projection in projections))
        else:
            projected = tuple(projection(x) for projection in projections)
        q, k, v = (y.view(*x.shape[:-1], -1, self.head_dim) for y in projected)
        q, k, v = self.q_norm(q, rotary), self.k_norm(k, rotary), v.transpose(1, 2)
        # Keys are cached after the rotary embedding, so past keys need no further rotation.
        if cache is not None:
            k, v = cache.update(k, v, self.layer_idx)
        attend: Callable[..., tuple[Tensor, Any]] = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, sdpa_attention_forward
        )
        out, _ = attend(
            self,
            q,
            k,
            v,
            attention_mask,
            scaling=self.scaling,
            dropout=self.config.dropout if self.training else 0.0,
            **kwargs,
        )
        out = out.reshape(*x.shape[:-1], -1)
        # Keys and values were needed at all positions; the output projection only at those that are kept.
        if keep is not None:
            out, residual = out.index_select(1, keep), residual.index_select(1, keep)
        # Dropout lies between projection and addition, so the two can only be fused without it.
        if self.dropout.p == 0 and ops.kernels_take(residual) and can_fuse(out, self.o_proj):
            return ops.linear(out, self.o_proj.weight, residual)
        return residual + self.dropout(self.o_proj(out))


class FeedForward(nn.Module):
    """SwiGLU feed-forward network (Shazeer, 2020)."""

    def __init__(self, config: MiniMindConfig, intermediate_size: int) -> None:
        super().__init__()
        self.gate_proj = Linear(config.hidden_size, intermediate_size)
        self.up_proj = Linear(config.hidden_size, intermediate_size)
        self.down_proj = Linear(intermediate_size, config.hidden_size)
        self.act = ACT2FN[config.hidden_act]
        self.is_silu = config.hidden_act == "silu"
        # MiniMind-3 has no dropout here.
        self.dropout = nn.Dropout(config.dropout if config.generation == 2 else 0.0)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        """residual + feed-forward output of the normalised x, both (..., H)."""
        layers = self.gate_proj, self.up_proj, self.down_proj
        if self.is_silu and self.dropout.p == 0 and ops.kernels_take(residual) and can_fuse(x, *layers):
            gate, up, down = (layer.weight for layer in layers)
            return ops.feed_forward(x, gate, up, down, residual)
        gate, up = self.gate_proj(x), self.up_proj(x)
        inner = ops.swiglu(gate, up) if self.is_silu else self.act(gate) * up
        return residual + self.dropout(self.down_proj(inner))
