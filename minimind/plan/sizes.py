"""The model's sizes that a plan needs: elements of the tensors, widths of the layers.

configuration, tensor shapes -> ModelSizes
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping

from transformers import PretrainedConfig

from minimind.errors import WeightsError
from minimind.model.family import family_of, layer_values
from minimind.model.quantized_layers import packed_bytes


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelSizes:
    """Sizes of a model, in elements.

    Attributes:
        tensors: elements of each tensor; tied tensors count once.
        adapters: elements of each tensor of the adapters that train, which `tensors` has too; empty: all tensors train.
        packed: elements of each tensor that is kept in 4 bits, which `tensors` has too.
        vocab, hidden, layers: V, H, L.
        query, key: channels of all query heads, of all key heads.
        inner: width of the feed-forward part for one token: intermediate size x experts per token.
        routed: number of experts that a token is routed to; 0 without experts.
        normed_heads: queries and keys are normalised per head (MiniMind-3, Qwen3).
        positions: largest number of tokens of a row; 0 if the model has no limit.
        matrices: elements of the tensors that Muon updates: matrices whose names have neither "embed" nor "lm_head".
        float32_norms: norms save float32 copies of 16-bit activations, as in the models of transformers.
    """

    tensors: tuple[int, ...]
    vocab: int
    hidden: int
    layers: int
    query: int
    key: int
    inner: int
    routed: int
    normed_heads: bool
    float32_norms: bool
    positions: int = 0
    matrices: int = 0
    adapters: tuple[int, ...] = ()
    packed: tuple[int, ...] = ()

    @classmethod
    def of(
        cls,
        config: PretrainedConfig,
        shapes: Mapping[str, tuple[int, ...]],
        adapters: Mapping[str, tuple[int, ...]] | None = None,
        packed: Collection[str] = (),
    ) -> ModelSizes:
        """Sizes of a model with this configuration and these tensors (`WeightSource.shapes`, `tensor_shapes`).

        Args:
            adapters: shapes of the adapters that train; None: the weights train.
            packed: names of the tensors that are kept in 4 bits.

        Raises:
            WeightsError: the configuration lacks a required size, for example the number of heads (Mamba).
        """
        text = config.get_text_config()
        heads = _required_size(text, "num_attention_heads")
        hidden = _required_size(text, "hidden_size")
        head_dim = given_size(text, "head_dim") or hidden // heads
        # Older configurations (GPT-2) lack these names: key heads equal heads, and the inner size is four times H.
        key_heads = given_size(text, "num_key_value_heads") or heads
        inner = given_size(text, "intermediate_size") or 4 * hidden
        routed = 0
        if any(".experts." in name for name in shapes):
            routed = given_size(text, "num_experts_per_tok") or 1
            shared = given_size(text, "n_shared_experts")
            inner = (routed + shared) * (given_size(text, "moe_intermediate_size") or inner)
        added = tuple(math.prod(shape) for shape in (adapters or {}).values())
        return cls(
            tensors=(*(math.prod(shape) for shape in shapes.values()), *added),
            adapters=added,
            packed=tuple(math.prod(shapes[name]) for name in sorted(packed)),
            vocab=_required_size(text, "vocab_size"),
            hidden=hidden,
            layers=_required_size(text, "num_hidden_layers"),
            query=heads * head_dim,
            key=key_heads * head_dim,
            inner=inner,
            routed=routed,
            normed_heads=any(".q_norm." in name for name in shapes),
            float32_norms=family_of(config).keeps_float32_norm_inputs,
            positions=given_size(text, "max_position_embeddings"),
            matrices=sum(math.prod(shape) for name, shape in shapes.items() if _is_hidden_matrix(name, shape)),
        )

    @property
    def parameters(self) -> int:
        """P, elements of all tensors."""
        return sum(self.tensors)

    @property
    def trained(self) -> int:
        """Elements of all tensors that train."""
        return sum(self.adapters) or self.parameters

    @property
    def largest(self) -> int:
        """Elements of the largest tensor."""
        return max(self.tensors)

    def small(self, threshold: int) -> int:
        """Elements of the tensors up to a threshold, which ZeRO-3 keeps unsharded on every rank."""
        return sum(size for size in self.tensors if size <= threshold)

    def shard(self, ranks: int) -> int:
        """Elements of one ZeRO-3 shard: each tensor is padded to a multiple of the ranks."""
        return sum(-(-size // ranks) for size in self.tensors)

    def saved(self, width: int, ranks: int = 1) -> int:
        """Bytes that a rank's share of the weights is smaller than at so many bytes an element, because of 4 bits."""
        return sum(width * size - packed_bytes(size) for size in self.packed) // ranks

    def trained_shard(self, ranks: int) -> int:
        """Elements of the part of a ZeRO-3 shard that trains."""
        return sum(-(-size // ranks) for size in self.adapters or self.tensors)


def _is_hidden_matrix(name: str, shape: tuple[int, ...]) -> bool:
    """DeepSpeed's rule; models that it would be wrong for are refused (`muon_obstacle` in engine/ds_optimizer.py)."""
    return len(shape) >= 2 and not any(word in name.lower() for word in ("embed", "lm_head"))


def given_size(config: PretrainedConfig, name: str) -> int:
    """A size of a configuration; the largest if each layer has its own (Gemma 3n); 0 if it is missing."""
    return max((value or 0 for value in layer_values(config, name)), default=0)


def _required_size(config: PretrainedConfig, name: str) -> int:
    if value := given_size(config, name):
        return value
    raise WeightsError(f"cannot plan a {config.model_type} model: its configuration has no {name}")
