"""Tiny random models, preference pairs of many shapes, and one training step, for the parity tests.

Tolerance, in float32 on a CPU, element by element: losses, the auxiliary loss and all gradients differ by at most 1e-6;
row log-probs (mean over the targets of a row) by at most 1e-6 * (1 + |log-prob|), because neighbouring float32 numbers
near 5 differ by 5e-7.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from minimind import MiniMindConfig, MiniMindForCausalLM
from minimind.data.packs import PairBatch
from minimind.data.table import PreferencePair
from minimind.engine.scorer import PairScorer
from minimind.objective.losses import LossInputs, PairScores, SigmoidLoss
from minimind.objective.rows import row_sums

ATOL = 1e-6
VOCAB, BETA = 97, 0.1
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": VOCAB}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}
HUGGING_FACE = {
    **SIZES,
    **HEADS,
    "intermediate_size": 64,
    "initializer_range": 0.1,
    "max_position_embeddings": 128,
}

MODELS = {
    "minimind2": lambda: MiniMindForCausalLM(MiniMindConfig(generation=2, **SIZES, **HEADS)),
    "minimind3": lambda: MiniMindForCausalLM(MiniMindConfig(generation=3, **SIZES, **HEADS)),
    "minimind2_moe": lambda: MiniMindForCausalLM(MiniMindConfig(generation=2, use_moe=True, **SIZES, **HEADS)),
    "minimind3_moe": lambda: MiniMindForCausalLM(MiniMindConfig(generation=3, use_moe=True, **SIZES, **HEADS)),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**HUGGING_FACE)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(head_dim=8, **HUGGING_FACE)),
}


def random_model(name: str, seed: int) -> PreTrainedModel:
    """A tiny model whose weights are large enough for attention to matter."""
    torch.manual_seed(seed)
    model = MODELS[name]()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.1, generator=generator)
    return model


def preference_pair(
    prefix: int, chosen: int, rejected: int, *, index: int, turns: tuple[int, ...] = ()
) -> PreferencePair:
    """A pair of random tokens.

    Args:
        prefix: length of the common prefix.
        chosen, rejected: lengths of the rest of each half. Its tokens come from a range of its own, so the common
            prefix is not longer than `prefix`.
        index: the pair's, and the seed.
        turns: positions in the prefix that are targets; the tokens after the prefix always are.
    """
    draw = np.random.default_rng(index)
    shared = draw.integers(3, VOCAB, prefix)
    own = {"chosen": draw.integers(3, 50, chosen), "rejected": draw.integers(50, VOCAB, rejected)}
    counted = np.isin(np.arange(prefix), turns)
    tokens = {half: np.concatenate((shared, part)).astype(np.int32) for half, part in own.items()}
    masks = {half: np.concatenate((counted, np.ones(len(part)))).astype(np.uint8) for half, part in own.items()}
    return PreferencePair(
        chosen=tokens["chosen"],
        rejected=tokens["rejected"],
        chosen_mask=masks["chosen"],
        rejected_mask=masks["rejected"],
        prefix=prefix,
        index=index,
    )


PAIRS = {
    "plain": preference_pair(6, 4, 5, index=1),
    "multi_turn": preference_pair(14, 3, 6, index=2, turns=(4, 5, 6, 10, 11)),
    "target_right_before_the_fork": preference_pair(7, 5, 2, index=3, turns=(5, 6)),
    "chosen_is_a_prefix_of_rejected": preference_pair(9, 0, 7, index=4, turns=(6, 7, 8)),
    "rejected_is_a_prefix_of_chosen": preference_pair(8, 6, 0, index=5, turns=(6, 7)),
    "nothing_shared": preference_pair(0, 5, 8, index=6),
    "one_token_each": preference_pair(5, 1, 1, index=7),
    "long_and_short": preference_pair(3, 60, 2, index=8),
    "short_and_long": preference_pair(20, 2, 50, index=9),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """Row log-probs (2N,), losses (N,), auxiliary loss (scalar), and the gradient of each parameter by name."""

    rows: Tensor
    losses: Tensor
    aux_loss: Tensor
    gradients: dict[str, Tensor]


def run(policy: PreTrainedModel, reference: PreTrainedModel, batch: PairBatch, attention: str = "native") -> Result:
    """One training micro-batch without an engine: scores, losses, and gradients of mean loss plus auxiliary loss."""
    policy.zero_grad()
    with torch.no_grad():
        reference_log_probs, _ = PairScorer(reference.eval(), attention)(batch)
    log_probs, aux_loss = PairScorer(policy.train(), attention)(batch)
    counts = batch.target_counts
    policy_scores, reference_scores = (
        PairScores(sums=row_sums(one, counts), target_counts=counts) for one in (log_probs, reference_log_probs)
    )
    losses = SigmoidLoss(beta=BETA)(LossInputs(policy=policy_scores, reference=reference_scores)).losses
    (losses.mean() + aux_loss).backward()
    gradients = {name: parameter.grad.clone() for name, parameter in policy.named_parameters()}
    rows = policy_scores.rows(True)
    return Result(rows=rows.detach(), losses=losses.detach(), aux_loss=aux_loss.detach(), gradients=gradients)


def assert_same(one: Result, other: Result) -> None:
    torch.testing.assert_close(one.rows, other.rows, rtol=ATOL, atol=ATOL)
    torch.testing.assert_close(one.losses, other.losses, rtol=0, atol=ATOL)
    torch.testing.assert_close(one.aux_loss, other.aux_loss, rtol=0, atol=ATOL)
    assert one.gradients.keys() == other.gradients.keys()
    for name, gradient in one.gradients.items():
        torch.testing.assert_close(
            gradient, other.gradients[name], rtol=0, atol=ATOL, msg=lambda m, n=name: f"{n}: {m}"
        )
