"""Bytes of forwards: what autograd saves, the output head, and a generation.

ModelSizes, StepLoad -> bytes

Shape letters: T tokens of a micro-batch, V vocabulary, H hidden, L layers.
"""

from __future__ import annotations

from minimind.objective.log_probs import block_bytes
from minimind.plan.choice import StepLoad
from minimind.plan.sizes import ModelSizes

# Bytes of a float32 value.
FLOAT32 = 4


def activation_bytes(sizes: ModelSizes, load: StepLoad) -> int:
    """Bytes that autograd saves in a forward over T tokens, an upper estimate.

    Elements per block and token: inputs of both norms and of the projections (4 H), of the feed-forward part
    (4 inner), of rotary embedding and attention with their expanded and concatenated copies (9 query channels). With
    checkpointing, the input of each block is saved, and one block is complete while it is recomputed. The fused
    operations on the CPU save about two thirds of the estimate.
    """
    block = 4 * sizes.hidden + 4 * sizes.inner + 9 * sizes.query + 3 * sizes.routed * sizes.hidden
    if sizes.normed_heads:
        block += 2 * (sizes.query + sizes.key)
    if sizes.float32_norms and load.width == 2:
        block += 4 * sizes.hidden
    per_token = sizes.layers * sizes.hidden + block if load.checkpointing else sizes.layers * block
    return load.width * load.tokens * per_token


def head_bytes(sizes: ModelSizes, load: StepLoad, on_cpu: bool) -> int:
    """Bytes of the output head: hidden states of the targets and their gradient, one block of logits, the gradient of
    the head's weight."""
    hidden = load.tokens * sizes.hidden * (load.width + FLOAT32)
    # Under adapters the head is frozen.
    gradient = 0 if sizes.adapters else load.width * sizes.vocab * sizes.hidden
    return hidden + logits_bytes(sizes, load.tokens, on_cpu) + gradient


def logits_bytes(sizes: ModelSizes, targets: int, on_cpu: bool) -> int:
    """Bytes of one block of logits: in 16 bits with a float32 copy and the gradient, or in float32 with a copy."""
    return min(block_bytes(on_cpu) // FLOAT32, targets * sizes.vocab) * 2 * FLOAT32


def forward_bytes(sizes: ModelSizes, tokens: int, width: int) -> int:
    """Bytes of the working set of a forward without a backward: the tensors of the one block that is computed.

    For each token the hidden state, its norm and the block's output (3 H), both halves of the feed-forward part and
    their product (3 inner), and queries with what attention makes of them (2 query channels).

    Args:
        width: bytes of an element.
    """
    return width * tokens * (3 * sizes.hidden + 3 * sizes.inner + 2 * sizes.query)


def sampling_bytes(sizes: ModelSizes, load: StepLoad) -> int:
    """Bytes of a generation: keys and values of all layers, working set of the prompts, logits of the next tokens."""
    rows = load.sample_rows
    # A run refuses prompts that leave no positions for the answer.
    length = min(load.sample_length, sizes.positions or load.sample_length)
    # A layer's cache is copied when a token is added to it.
    cache = load.width * (sizes.layers + 1) * 2 * sizes.key * rows * length
    working = forward_bytes(sizes, rows * length, load.width)
    # The model's logits, float32 copies of them, and noise.
    return cache + working + rows * sizes.vocab * (load.width + 4 * FLOAT32)
