"""A pack gives the loss and gradients of MiniMind's own way: DPODataset, logits, logits_to_log_probs, dpo_loss."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor

from minimind import DPODataset, MiniMindConfig, MiniMindForCausalLM, dpo_loss, logits_to_log_probs
from minimind.data.packs import PackedPairs, pack
from minimind.data.sources import open_source
from minimind.data.table_cache import load_table
from minimind.engine.scorer import PairScorer
from minimind.objective.losses import LossInputs, PairScores, SigmoidLoss
from minimind.objective.rows import row_sums
from tests.conftest import conversation, pair
from tests.parity.steps import ATOL, BETA, HEADS, SIZES

ROWS = (
    pair("What is the colour of the sky?", "It is blue.", "Go and look yourself, I am busy."),
    pair(
        "Two and two?",
        "Four.",
        "Four. Do you need your fingers for that, or can you count in your head by now?",
    ),
    {
        "chosen": conversation("Hello", "Good morning!", "Where is Rome?", "In Italy, a lovely country."),
        "rejected": conversation("Hello", "Good morning!", "Where is Rome?", "Not here."),
    },
    {
        "chosen": [{"role": "system", "content": "Be kind."}, *conversation("你好", "你好，很高兴见到你。")],
        "rejected": [{"role": "system", "content": "Be kind."}, *conversation("你好", "走开。")],
    },
)


@pytest.fixture
def rows_path(write_rows) -> Path:
    return write_rows(*ROWS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Step:
    """The DPO loss of one batch and the gradient of each parameter by name."""

    loss: Tensor
    gradients: dict[str, Tensor]


def step_of(loss: Tensor, policy: MiniMindForCausalLM) -> Step:
    policy.zero_grad()
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None}
    return Step(loss=loss.detach(), gradients=gradients)


def minimind_step(
    policy: MiniMindForCausalLM, reference: MiniMindForCausalLM, dataset: DPODataset, average: bool
) -> Step:
    """As in MiniMind's training script: padded rows, logits of all tokens, its loss function."""
    samples = [dataset[i] for i in range(len(dataset))]
    x, y, mask = (
        torch.stack([sample[f"{field}_{half}"] for half in ("chosen", "rejected") for sample in samples])
        for field in ("x", "y", "mask")
    )
    with torch.no_grad():
        reference_log_probs = logits_to_log_probs(reference(x).logits, y)
    policy_log_probs = logits_to_log_probs(policy(x).logits, y)
    return step_of(dpo_loss(reference_log_probs, policy_log_probs, mask, BETA, average), policy)


def packed_step(policy: MiniMindForCausalLM, reference: MiniMindForCausalLM, batch: PackedPairs, average: bool) -> Step:
    """As in this project: one pack, log-probs of the targets only."""
    with torch.no_grad():
        reference_log_probs, _ = PairScorer(reference)(batch)
    log_probs, _ = PairScorer(policy)(batch)
    counts = batch.target_counts
    own, theirs = (
        PairScores(sums=row_sums(one, counts), target_counts=counts) for one in (log_probs, reference_log_probs)
    )
    loss = SigmoidLoss(beta=BETA, average_log_prob=average)
    return step_of(loss(LossInputs(policy=own, reference=theirs)).losses.mean(), policy)


@pytest.mark.parametrize("average", [True, False], ids=["mean", "sum"])
@pytest.mark.parametrize("name", ["minimind2", "minimind3", "minimind2_moe", "minimind3_moe"])
@pytest.mark.parametrize("max_length", [64, 24], ids=["whole", "truncated"])
def test_a_pack_gives_the_loss_and_gradients_of_minimind(name, average, max_length, tokenizer, rows_path, tmp_path):
    """The auxiliary loss is not compared: MiniMind counts padding in it."""
    torch.manual_seed(0)
    sizes = {**SIZES, **HEADS, "vocab_size": len(tokenizer), "use_moe": name.endswith("moe")}
    config = MiniMindConfig(generation=int(name[8]), initializer_range=0.1, **sizes)
    policy, reference = MiniMindForCausalLM(config).train(), MiniMindForCausalLM(config).eval()
    dataset = DPODataset(rows_path, tokenizer, max_length=max_length)
    assert len(dataset) == len(ROWS)
    golden = minimind_step(policy, reference, dataset, average)

    table = load_table(
        open_source(rows_path),
        tokenizer,
        max_length=max_length,
        num_workers=0,
        cache_dir=tmp_path / "cache",
    )
    batch = pack([table[i] for i in range(len(table))])
    assert isinstance(batch, PackedPairs)
    assert batch.num_pairs == len(ROWS)
    ours = packed_step(policy, reference, batch, average)
    # The sum over the tokens of a row is about twenty times the mean, and so is its rounding error.
    atol = ATOL if average else 20 * ATOL
    torch.testing.assert_close(ours.loss, golden.loss, rtol=0, atol=atol)
    assert ours.gradients.keys() == golden.gradients.keys()
    for key, gradient in golden.gradients.items():
        torch.testing.assert_close(ours.gradients[key], gradient, rtol=0, atol=atol)
