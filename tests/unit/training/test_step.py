"""A global step: the loss is the mean over its pairs, and a step that is not finite names its micro-batches."""

from __future__ import annotations

import dataclasses
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from minimind.data.packs import pack, with_values
from minimind.data.table import PreferencePair
from minimind.errors import TrainingError
from minimind.objective.losses import build_objective
from minimind.objective.rows import ReferenceScores
from minimind.ranks.watch import Watch
from minimind.ranks.world import World
from minimind.training.jobs.dpo import DPOJob
from minimind.training.jobs.job import BatchOutcome
from minimind.training.metrics import MetricSums
from minimind.training.step import eval_step, eval_together, train_step

WORLD = World(rank=0, local_rank=0, size=1, device=torch.device("cpu"))


def pair(index):
    tokens, mask = np.arange(3, 9, dtype=np.int32), np.array([0, 0, 0, 1, 1, 1], dtype=np.uint8)
    other = tokens.copy()
    other[3:] += 10
    return PreferencePair(chosen=tokens, rejected=other, chosen_mask=mask, rejected_mask=mask, prefix=3, index=index)


class Policy:
    """Gives every target the log-prob -1, except the last target of the micro-batches in `broken`.

    The last step fails as DeepSpeed's check of the gradient does if `fails`.
    """

    def __init__(self, broken=None, aux_loss=0.0, fails=False) -> None:
        self.world, self.broken, self.aux_loss, self.fails = WORLD, broken or {}, aux_loss, fails
        self.seen, self.backwards = 0, []

    def score(self, batch, distributions=False):
        self.seen += 1
        log_probs = torch.full((len(batch.target_ids),), -1.0)
        if self.seen in self.broken:
            log_probs[-1] = self.broken[self.seen]
        return log_probs, torch.tensor(self.aux_loss if self.seen == 4 else 0.0)

    def backward(self, loss, last):
        self.backwards.append((loss.item(), last))

    def step(self):
        if self.fails and self.backwards[-1][1]:
            raise TrainingError("the gradient is not finite")


def job(reference_sum=-3.0):
    """DPO with sums of log-probs; the reference gives every row the same sum."""
    reference = SimpleNamespace(
        score=lambda batches, per_token: [
            ReferenceScores(sums=torch.full((batch.num_pairs, 2), reference_sum)) for batch in batches
        ]
    )
    objective = build_objective("sigmoid", {"average_log_prob": False})
    return DPOJob(objective=objective, reference=reference)


@pytest.mark.parametrize(
    ("broken", "aux_loss", "finite"),
    [
        ({2: -torch.inf}, 0.0, [True, False, True, True]),
        ({1: torch.nan, 3: torch.inf}, 0.0, [False, True, False, True]),
        ({}, torch.nan, [True, True, True, False]),
        ({}, 0.0, [True, True, True, True]),  # finite losses whose gradient overflowed
    ],
)
def test_an_error_says_which_micro_batches_were_finite(broken, aux_loss, finite):
    batches = [pack([pair(index), pair(index + 1)]) for index in (1, 3, 5, 7)]
    policy = Policy(broken, aux_loss, fails=True)
    with pytest.raises(TrainingError) as caught:
        train_step(policy, job(), batches, MetricSums(WORLD, job()), Watch())
    assert caught.value.finite == finite


def test_micro_batches_are_weighted_by_their_pairs():
    """1 and 3 pairs of equal loss ln 2: shares 1/4 and 3/4; only the last micro-batch ends the step."""
    policy = Policy()
    batches = [pack([pair(1)]), pack([pair(2), pair(3), pair(4)])]
    train_step(policy, job(), batches, MetricSums(WORLD, job()), Watch())
    (first, first_last), (second, second_last) = policy.backwards
    assert first == pytest.approx(math.log(2) / 4, abs=1e-6)
    assert second == pytest.approx(math.log(2) * 3 / 4, abs=1e-6)
    assert (first_last, second_last) == (False, True)


def test_each_micro_batch_is_told_with_its_outcome():
    told = []
    batches = [pack([pair(1)]), pack([pair(2), pair(3)])]
    sums = MetricSums(WORLD, job())
    train_step(Policy(), job(), batches, sums, Watch(), met=lambda batch, outcome: told.append((batch, outcome)))
    assert [batch.indices for batch, _ in told] == [batch.indices for batch in batches]
    assert [outcome.of_items("chosen_logps").tolist() for _, outcome in told] == [[-3.0], [-3.0, -3.0]]


def test_an_evaluation_counts_only_pairs_with_weight(one_rank):
    """Targets of a row: 3, each -1. Reference sums -3, so every reward is 0 and every loss ln 2."""
    sums = MetricSums(WORLD, job())
    eval_step(Policy(), job(), pack([pair(1), pair(2)]), [1.0, 1.0], sums)
    eval_step(Policy({1: -50.0}), job(), pack([pair(1)]), [0.0], sums)
    metrics = sums.reduce(seconds=1.0)
    assert metrics["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert metrics["logps/chosen"] == pytest.approx(-3.0)
    assert metrics["pairs_per_second"] == 2.0
    assert metrics["tokens_per_second"] == 24.0  # 2 pairs x 2 rows x 6 tokens


class TokenJob(DPOJob):
    """Has an item for each target of a pair, as a job over tokens has."""

    name, item = "token", "targets"

    def outcome(self, batch, log_probs, target):
        return BatchOutcome(losses=-log_probs, metrics={})

    def size(self, batch):
        return len(batch.target_ids)

    def item_weights(self, batch, weights):
        return weights.repeat_interleave(batch.target_counts.sum(1))


def test_an_evaluation_of_a_job_over_tokens_weights_each_token_as_its_example(one_rank):
    """Two pairs of 6 targets: -1 each, but the second pair's last is -50 and does not count."""
    base = job()
    tokens = TokenJob(objective=base.objective, reference=base.reference)
    tokens.metrics = ()
    sums = MetricSums(WORLD, tokens)
    eval_step(Policy({1: -50.0}), tokens, pack([pair(1), pair(2)]), [1.0, 0.0], sums)
    metrics = sums.reduce(seconds=1.0)
    assert (metrics["loss"], metrics["targets_per_second"]) == (1.0, 6.0)


class Varied(Policy):
    """Gives each target minus its token's last digit, and notes how batches were scored."""

    def score(self, batch, distributions=False):
        self.calls.append("score")
        log_probs = -(batch.target_ids % 10).float() * batch.indices[0] / 10
        return log_probs.requires_grad_(torch.is_grad_enabled()), torch.zeros(())

    def look_ahead(self, batches):
        with torch.no_grad():
            return [self.score(batch)[0] for batch in batches]

    calls: list = []


def whole_batch_job():
    reference = SimpleNamespace(
        score=lambda batches, per_token: [
            ReferenceScores(sums=torch.tensor([[-1.0, -2.0 - index] for index in batch.indices])) for batch in batches
        ]
    )
    return DPOJob(objective=build_objective("aot"), reference=reference, world=WORLD)


@pytest.mark.parametrize("lines", [[[1, 2, 3, 4]], [[1, 2], [3, 4]], [[1], [2, 3, 4]]])
def test_a_job_of_the_whole_batch_scores_a_single_micro_batch_once(lines, one_rank, monkeypatch):
    policy, sums = Varied(), MetricSums(WORLD, whole_batch_job())
    monkeypatch.setattr(policy, "calls", [])
    batches = [pack([pair(line) for line in of_batch]) for of_batch in lines]
    train_step(policy, whole_batch_job(), batches, sums, Watch())
    assert len(policy.calls) == (1 if len(lines) == 1 else 2 * len(lines))
    assert [last for _, last in policy.backwards] == [False] * (len(lines) - 1) + [True]


@pytest.mark.parametrize("lines", [[[1, 2, 3, 4]], [[1, 2], [3, 4]]])
def test_mismatched_rows_have_no_gradient(lines, one_rank, monkeypatch):
    """KTO: the second rows are computed first, without a gradient; what is trained on are the first rows alone."""
    job = DPOJob(objective=build_objective("kto"), reference=whole_batch_job().reference, world=WORLD)
    layout = with_values(pack, labels=True, halves=True)
    batches = [layout([dataclasses.replace(pair(line), label=line > 2) for line in of_batch]) for of_batch in lines]
    seen = []

    def score(self, batch, distributions=False):
        seen.append((batch.target_ids.tolist(), torch.is_grad_enabled()))
        return torch.full((len(batch.target_ids),), -1.0), torch.zeros(())

    monkeypatch.setattr(Varied, "score", score)
    sums = MetricSums(WORLD, job)
    train_step(Varied(), job, batches, sums, Watch())
    first, second = [6, 7, 8], [16, 17, 18]
    halves = [(rows * len(of_batch), graded) for rows, graded in ((second, False), (first, True)) for of_batch in lines]
    assert seen == halves
    metrics = sums.reduce(seconds=1.0)
    # Mismatched rows: -3 each, of the reference -2 - line. Answers: -3, of the reference -1.
    assert metrics["kl"] == pytest.approx(sum(line - 1 for line in (1, 2, 3, 4)) / 4)
    assert metrics["rewards/chosen"] == pytest.approx(0.1 * (-3 + 1))
    assert (metrics["lengths/rejected"], metrics["nll"], metrics["desirable"]) == (3, 1, 0.5)
    assert metrics["tokens_per_second"] == 4 * 12
    seen.clear()
    together = MetricSums(WORLD, job)
    eval_together(Varied(), job, [(batch, [1.0] * batch.num_pairs) for batch in batches], together, lambda: None)
    assert together.reduce(seconds=1.0)["loss"] == pytest.approx(metrics["loss"])


def test_an_evaluation_of_the_whole_batch_is_one_batch(one_rank, monkeypatch):
    """The same held-out pairs in batches of one, two and four, with one that does not count, give the same loss."""
    found = []
    for lines in ([[1], [1], [1], [1]], [[1, 1], [1, 1]], [[1, 1, 1, 1]]):
        policy, ticks, sums = Varied(), [], MetricSums(WORLD, whole_batch_job())
        monkeypatch.setattr(policy, "calls", [])
        batches = [(pack([pair(line) for line in of_batch]), [1.0] * len(of_batch)) for of_batch in lines]
        batches.append((pack([pair(9)]), [0.0]))
        eval_together(policy, whole_batch_job(), batches, sums, lambda ticks=ticks: ticks.append(1))
        assert len(ticks) == len(batches)
        found.append(sums.reduce(seconds=1.0))
    for metrics in found:
        assert metrics["loss"] == pytest.approx(found[0]["loss"])
        assert metrics["pairs_per_second"] == 4.0
