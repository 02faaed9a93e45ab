"""The MiniMind model as a Hugging Face `PreTrainedModel`: generation, saving, checkpointing and the cache are theirs.

    token ids (B, T) -> embeddings -> L blocks -> norm -> hidden (B, T, H) -> head -> logits (B, T, V)

Training does not apply the head to all tokens: the scorer (`engine/scorer.py`) multiplies the hidden states at the K
target positions by the weight of the head. Importing this module registers MiniMind with transformers' Auto classes.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, GenerationMixin, PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import MoeCausalLMOutputWithPast
from transformers.utils import ModelOutput

from minimind.model.configuration import MiniMindConfig
from minimind.model.layers import Attention, FeedForward, RMSNorm, norm_with_residual, rotary_tables
from minimind.model.moe import Experts, MixtureOfExperts, TokenRows
from minimind.model.packed_attention import PackSegments

# transformers' argument for the keys and values of past tokens: `cache` since 5.24, before that `past_key_values`.
_OLD_CACHE = "past_key_values"
_CACHE = "cache" if "cache" in MoeCausalLMOutputWithPast.__dataclass_fields__ else _OLD_CACHE


def _given_cache(cache: Cache | None, past_key_values: Cache | None) -> Cache | None:
    """The cache, which a caller may pass under either name."""
    if cache is not None and past_key_values is not None:
        raise ValueError("give either cache or past_key_values, not both")
    return past_key_values if cache is None else cache


class Block(GradientCheckpointingLayer):
    """Pre-norm transformer block: attention, then a feed-forward network or a mixture of experts."""

    def __init__(self, config: MiniMindConfig, layer_idx: int) -> None:
        super().__init__()
        self.self_attn = Attention(config, layer_idx)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp: nn.Module = (
            MixtureOfExperts(config) if config.use_moe else FeedForward(config, config.intermediate_size)
        )

    def forward(
        self,
        x: Tensor,
        rotary: tuple[Tensor, Tensor],
        attention_mask: Tensor | None,
        cache: Cache | None,
        rows: TokenRows | None,
        keep: Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Hidden states (B, T, H), or (B, K, H) with `keep`; and the auxiliary loss, None without experts."""
        normed, x = norm_with_residual(self.input_layernorm, x)
        x = self.self_attn(normed, x, rotary, attention_mask, cache, keep, **kwargs)
        normed, x = norm_with_residual(self.post_attention_layernorm, x)
        # The feed-forward network adds the residual itself, because a kernel can fuse the addition.
        if rows is None:
            return self.mlp(normed, x), None
        out, aux_loss = self.mlp(normed, rows)
        return x + out, aux_loss


@dataclasses.dataclass
class BackboneOutput(ModelOutput):
    """Hidden states (B, T, H), the auxiliary loss (a float32 scalar, 0 without experts), and the cache."""

    last_hidden_state: Tensor | None = None
    aux_loss: Tensor | None = None
    cache: Cache | None = None


class MiniMindPreTrainedModel(PreTrainedModel):
    """Declarations that Hugging Face reads from the class of every MiniMind model."""

    config_class = MiniMindConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    # Blocks have residual connections, so accelerate must not place the parts of one on different devices.
    _no_split_modules = ["Block"]
    _skip_keys_device_placement = ["cache", _OLD_CACHE]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        # Hugging Face initialises its own and torch's layers; it does not know the stacked tensors.
        super()._init_weights(module)
        if isinstance(module, Experts):
            for stack in (module.gate_proj, module.up_proj, module.down_proj):
                nn.init.normal_(stack, mean=0.0, std=self.config.initializer_range)


def _next_positions(hidden: Tensor, cache: Cache | None) -> Tensor:
    """Positions (B, T) that continue after the tokens in the cache."""
    batch, length = hidden.shape[:2]
    seen = cache.get_seq_length() if cache is not None else 0
    return torch.arange(seen, seen + length, device=hidden.device).expand(batch, -1)


class MiniMindModel(MiniMindPreTrainedModel):
    """Backbone without the head."""

    def __init__(self, config: MiniMindConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(Block(config, index) for index in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.gradient_checkpointing = False
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool = False,
        pack: PackSegments | None = None,
        keep: Tensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> BackboneOutput:
        """Hidden states of token ids.

        Args:
            input_ids: (B, T) int64; or `inputs_embeds` (B, T, H).
            attention_mask: (B, T), 0 for padding.
            position_ids: (B, T) int64; by default they continue after the cache.
            cache: keys and values of past tokens; `past_key_values` is its other name.
            pack: the segments of a pack; then B is 1 and there is no mask.
            keep: (K,) int64; only these positions of each sequence are returned, (B, K, H). The last block computes
                keys and values of all tokens, and everything else only for these.

        Raises:
            ValueError: both or neither of `input_ids` and `inputs_embeds`, or two caches.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds, not both")
        hidden = self.dropout(self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds)
        cache = _given_cache(cache, past_key_values)
        if use_cache and cache is None:
            cache = DynamicCache(config=self.config)
        if position_ids is None:
            position_ids = _next_positions(hidden, cache)
        # None for packs and where SDPA's own causal mask is enough.
        mask = create_causal_mask(
            config=self.config,
            inputs_embeds=hidden,
            attention_mask=attention_mask,
            position_ids=position_ids,
            **{_CACHE: cache},
        )
        # Only the auxiliary loss of experts needs to know which tokens belong to which row.
        rows = self._token_rows(hidden, attention_mask, pack) if self.config.use_moe else None
        # The blocks pass their keyword arguments on to the attention function.
        if pack is not None:
            kwargs["pack"] = pack
        hidden, aux_loss = self._run_blocks(hidden, position_ids, mask, cache, rows, keep, **kwargs)
        return BackboneOutput(last_hidden_state=self.norm(hidden), aux_loss=aux_loss, cache=cache)

    def _run_blocks(
        self,
        hidden: Tensor,
        position_ids: Tensor,
        mask: Tensor | None,
        cache: Cache | None,
        rows: TokenRows | None,
        keep: Tensor | None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor]:
        """Hidden states (B, T, H), or (B, K, H) with `keep`, and the sum of the auxiliary losses of all blocks."""
        rotary = rotary_tables(self.config, position_ids)
        aux_losses = []
        for number, layer in enumerate(self.layers, start=1):
            # With experts the last block computes all tokens, because the auxiliary loss counts all of them.
            only_kept = number == len(self.layers) and rows is None
            hidden, aux_loss = layer(hidden, rotary, mask, cache, rows, keep if only_kept else None, **kwargs)
            aux_losses.append(aux_loss)
        if rows is None:
            return hidden, hidden.new_zeros((), dtype=torch.float32)
        if keep is not None:
            hidden = hidden.index_select(1, keep)
        return hidden, torch.stack(aux_losses).sum()

    @staticmethod
    def _token_rows(hidden: Tensor, attention_mask: Tensor | None, pack: PackSegments | None) -> TokenRows:
        """The rows of the tokens of hidden (B, T, H), for the auxiliary loss of the experts."""
        if pack is not None:
            return TokenRows(pack=pack)
        batch, length = hidden.shape[:2]
        if attention_mask is not None and attention_mask.ndim == 2:
            # With a cache the mask also covers the past tokens, which are not among the hidden states.
            return TokenRows(mask=attention_mask[:, -length:].to(torch.float32))
        return TokenRows(mask=hidden.new_ones(batch, length, dtype=torch.float32))


class MiniMindForCausalLM(MiniMindPreTrainedModel, GenerationMixin):
    """MiniMind with its head. Its output has `.logits` (B, T, V) and `.aux_loss`, as that of MiniMind's own model."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config: MiniMindConfig | None = None) -> None:
        super().__init__(config or MiniMindConfig())
        self.model = MiniMindModel(self.config)
        self.lm_head = nn.Linear(self.config.hidden_size, self.config.vocab_size, bias=False)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool = False,
        logits_to_keep: int | Tensor = 0,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> MoeCausalLMOutputWithPast:
        """Logits of token ids (B, T), and with `labels` (B, T) the next-token loss; labels of -100 are ignored.

        `logits_to_keep`: the number of last positions, or the positions (K,), for which logits are computed; 0 for all.
        """
        cache = _given_cache(cache, past_key_values)
        out = self.model(input_ids, attention_mask, position_ids, cache, inputs_embeds, use_cache, **kwargs)
        keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(out.last_hidden_state[:, keep])
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten(), ignore_index=-100)
        return MoeCausalLMOutputWithPast(loss=loss, aux_loss=out.aux_loss, logits=logits, **{_CACHE: out.cache})


AutoConfig.register("minimind", MiniMindConfig)
AutoModel.register(MiniMindConfig, MiniMindModel)
AutoModelForCausalLM.register(MiniMindConfig, MiniMindForCausalLM)
