"""Metrics of the answers' tokens equal a plain computation over each row alone, packed and padded."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from minimind.data.packs import pack, pad
from minimind.data.table import PreferencePair
from minimind.engine.scorer import PairScorer
from minimind.model.modeling import MiniMindForCausalLM
from minimind.objective.losses import build_objective
from minimind.ranks.world import World
from minimind.training.jobs.answer_metrics import LENGTH_METRICS, TOKEN_METRICS, answer_lengths, token_metrics
from minimind.training.jobs.dpo import DPOJob
from minimind.training.metrics import MetricSums
from tests.unit.weights.conftest import minimind

# Few tokens, so that some of the targets are the likeliest ones.
VOCABULARY = 6
WORLD = World(rank=0, local_rank=0, size=1, device=torch.device("cpu"))


def pair(index: int, prompt: int, shared: int, chosen: int, rejected: int) -> PreferencePair:
    """Random tokens: a prompt, an earlier answer that both rows share, a question, and the two answers."""
    draw = np.random.default_rng(index)
    start = draw.integers(0, VOCABULARY, prompt + shared + 2)
    mask = [0] * prompt + [1] * shared + [0] * 2
    rows = [
        np.concatenate((start, draw.integers(0, VOCABULARY, length))).astype(np.int32) for length in (chosen, rejected)
    ]
    masks = [np.array(mask + [1] * length, dtype=np.uint8) for length in (chosen, rejected)]
    return PreferencePair(
        chosen=rows[0], rejected=rows[1], chosen_mask=masks[0], rejected_mask=masks[1], prefix=len(start), index=index
    )


PAIRS = [pair(1, 3, 2, 5, 1), pair(2, 4, 0, 2, 7), pair(3, 2, 3, 1, 4)]


def model() -> MiniMindForCausalLM:
    network = minimind("minimind3", vocab_size=VOCABULARY)
    # Larger weights of the tied head, so that distributions are neither flat nor certain.
    network.get_output_embeddings().weight.data *= 5
    return network


def plain(network: MiniMindForCausalLM) -> dict[str, float]:
    """The metrics over the logits of each row alone."""
    nll, entropies, hits, lengths = [], [], [], {"chosen": [], "rejected": []}
    for one in PAIRS:
        for half in lengths:
            tokens = torch.from_numpy(getattr(one, half).astype(np.int64))
            places = np.flatnonzero(getattr(one, f"{half}_mask"))
            logits = network(input_ids=tokens[None]).logits[0, places - 1].double()
            probabilities = logits.softmax(-1)
            entropies += (-(probabilities * probabilities.log()).sum(-1)).tolist()
            hits += (logits.argmax(-1) == tokens[places]).tolist()
            lengths[half].append(len(places))
            if half == "chosen":
                nll += (-probabilities[range(len(places)), tokens[places]].log()).tolist()
    means = {"nll": np.mean(nll), "entropy": np.mean(entropies), "token_accuracy": np.mean(hits)}
    return {**means, **{f"lengths/{half}": np.mean(of) for half, of in lengths.items()}}


@pytest.mark.parametrize("layout", [pack, pad], ids=["packed", "padded"])
@pytest.mark.parametrize("split", [[PAIRS], [PAIRS[:1], PAIRS[1:]]], ids=["one batch", "two batches"])
def test_metrics_are_those_of_each_row_alone(layout, split, one_rank):
    scorer = PairScorer(model())
    scorer.distributions = True
    job = DPOJob(objective=build_objective("simpo"), reference=None)
    sums = MetricSums(WORLD, job)
    for pairs in split:
        batch = layout(pairs)
        columns, aux_loss = scorer(batch)
        (target,) = job.targets([batch])
        sums.add(job.outcome(batch, columns, target), aux_loss, batch.row_tokens)
    # Of another instance: the scorer has switched the attention of its own.
    found, expected = sums.reduce(seconds=1.0), plain(model())
    assert set(expected) == {*LENGTH_METRICS, *TOKEN_METRICS}
    assert 0 < expected["token_accuracy"] < 1
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-5), name


def test_without_distributions_only_the_likelihood_is_known():
    counts = torch.tensor([[1, 2, 0]])
    assert set(token_metrics(torch.zeros(1, 2), counts, None)) == {"nll"}
    assert {name: of.tolist() for name, of in answer_lengths(counts).items()} == {
        "lengths/chosen": [3.0],
        "lengths/rejected": [1.0],
    }
