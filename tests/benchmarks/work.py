"""Counts the useful operations of training steps, and measures this machine's rate of matrix products.

Useful operations are those that exact DPO of these pairs needs: every token of a pair once, a shared prefix once; in
attention only pairs of tokens that see each other; the output head, and the part of the last block after attention,
only at target positions; the policy's forward and backward (twice a forward: gradients of inputs and of weights); the
reference's forward unless it is cached. Recomputed, padded and masked operations do not count, nor do norms, softmax,
activations and the optimizer. A multiplication and an addition are two operations.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import statistics
from collections.abc import Callable, Sequence

import torch

from minimind import MiniMindConfig
from minimind.data.packs import PackedPairs
from tests.benchmarks.common import DEVICE, now


@dataclasses.dataclass(frozen=True, kw_only=True)
class Work:
    """Work in some pairs.

    Attributes:
        pairs: number of pairs.
        row_tokens: tokens of both rows of each pair; a shared prefix counts twice.
        packed_tokens: tokens that must be computed.
        targets: tokens whose log-prob counts.
        forward_flops: useful operations of one forward; `attention_flops` of them are attention's scores and values.
    """

    pairs: int
    row_tokens: int
    packed_tokens: int
    targets: int
    forward_flops: float
    attention_flops: float

    def useful_flops(self, *, live_reference: bool) -> float:
        """Useful operations of one training pass over the pairs."""
        return self.forward_flops * (4 if live_reference else 3)


def work_of(packs: Sequence[PackedPairs], config: MiniMindConfig) -> Work:
    """The work in some packs of a dense MiniMind."""
    tokens, targets = sum(len(one.token_ids) for one in packs), sum(len(one.target_ids) for one in packs)
    to_attention, after = (sum(count * n * k for n, k, count in part) for part in _layer_products(config))
    layers = config.num_hidden_layers
    seen = sum(_visible(*segment) for one in packs for segment in one.segments)
    # Scores and values: two products of head_dim for each head and each pair of tokens.
    attention = layers * 2.0 * 2 * config.num_attention_heads * config.head_dim * seen
    return Work(
        pairs=sum(one.num_pairs for one in packs),
        row_tokens=sum(one.row_tokens for one in packs),
        packed_tokens=tokens,
        targets=targets,
        forward_flops=layers * 2.0 * to_attention * tokens
        + attention
        + 2.0 * after * (tokens * (layers - 1) + targets)
        + 2.0 * config.hidden_size * config.vocab_size * targets,
        attention_flops=attention,
    )


def _visible(prefix: int, chosen: int, rejected: int) -> int:
    """Number of (query, key) pairs in which the query sees the key, in one pair of rows; a token sees itself."""
    row = prefix + chosen
    return row * (row + 1) // 2 + rejected * prefix + rejected * (rejected + 1) // 2


_Products = tuple[tuple[int, int, int], ...]


def _layer_products(config: MiniMindConfig) -> tuple[_Products, _Products]:
    """Shapes (n, k) of a layer's weights and their numbers: those up to attention, and those after it."""
    h, inner = config.hidden_size, config.intermediate_size
    heads, kv = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    return ((heads, h, 1), (kv, h, 2)), ((h, heads, 1), (inner, h, 2), (h, inner, 1))


@dataclasses.dataclass(frozen=True, kw_only=True)
class GemmRates:
    """Operations per second of this machine's matrix products in one dtype, at the model's own shapes.

    Attributes:
        forward: rate of `x w'` over all weights of the model, each as often as it occurs, the head at targets only.
        backward: rate of the gradients `g w` and `g' x` over the same weights.
        peak: rate of the fastest of these products.
    """

    forward: float
    backward: float
    peak: float

    def of_training(self, *, live_reference: bool) -> float:
        """Denominator of utilisation: the rate of training's products, forward (twice with a live reference) and
        backward (two products for each of a forward)."""
        forwards = 2 if live_reference else 1
        return (forwards + 2) / (forwards / self.forward + 2 / self.backward)


def gemm_rates(config: MiniMindConfig, tokens: int, targets: int, dtype: torch.dtype) -> GemmRates:
    """Measure the rates for a pack with this many tokens and targets."""
    flops, forward, backward, peak = 0.0, 0.0, 0.0, 0.0
    in_layer = itertools.chain(*_layer_products(config))
    products = [(tokens, n, k, count * config.num_hidden_layers) for n, k, count in in_layer]
    products.append((targets, config.vocab_size, config.hidden_size, 1))
    for rows, n, k, count in products:
        x, w, grad = (torch.randn(*size, dtype=dtype, device=DEVICE) for size in ((rows, k), (n, k), (rows, n)))
        times = [_median_seconds(functools.partial(torch.mm, *pair)) for pair in ((x, w.T), (grad, w), (grad.T, x))]
        peak = max(peak, 2.0 * rows * n * k / min(times))
        flops += 2.0 * rows * n * k * count
        forward += times[0] * count
        backward += (times[1] + times[2]) * count
    if DEVICE.type == "cuda":
        torch.cuda.empty_cache()  # the trainers' processes need the memory
    return GemmRates(forward=flops / forward, backward=2 * flops / backward, peak=peak)


def _median_seconds(action: Callable[[], object], repeats: int = 9, budget: float = 0.5) -> float:
    """Median seconds of several calls after a first one; fewer calls, or the first one alone, if they take long.

    Args:
        budget: seconds after which no further call starts.
    """
    times = []
    for _ in range(1 + repeats):
        started = now()
        action()
        times.append(now() - started)
        if sum(times) > budget:
            break
    return statistics.median(times[1:] or times)
