"""The DPO job: what it asks of the reference, and what it gives to the loss."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch

from minimind.objective.losses import Need, Objective, PairLosses, Part, PreferenceLoss, build_objective
from minimind.objective.rows import ReferenceScores
from minimind.ranks.world import World
from minimind.training.jobs.dpo import ROW_VALUES, DPOJob, PairTargets

# Two pairs: one target in the prefix, one of chosen, one of rejected; none, two of chosen, one of rejected.
COUNTS = torch.tensor([[1, 1, 1], [0, 2, 1]])
LOG_PROBS = torch.tensor([-1.0, -3.0, -5.0, -2.0, -4.0, -7.0])
SCORES = torch.tensor([[8.0, 2.0], [3.0, 4.0]])
BATCH = SimpleNamespace(target_counts=COUNTS, num_pairs=2, scores=SCORES, labels=None, halves=None)
# Sums by hand: -1 - 3, -1 - 5; -2 - 4, -7. Means: -2, -3; -3, -7.
SUMS = [[-4.0, -6.0], [-6.0, -7.0]]
MEANS = [[-2.0, -3.0], [-3.0, -7.0]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recorder(PreferenceLoss):
    """Keeps its inputs."""

    name: ClassVar[str] = "recorder"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.REFERENCE, Need.PER_TOKEN})
    metrics: ClassVar[tuple[str, ...]] = ("seen",)
    seen: list = dataclasses.field(default_factory=list)

    def start_value(self):
        return None

    def __call__(self, inputs):
        self.seen.append(inputs)
        return PairLosses(losses=inputs.policy.sums[:, 0], metrics={"seen": inputs.policy.sums[:, 0]})


def job_of(loss, reference):
    return DPOJob(objective=Objective(parts=(Part(loss=loss),)), reference=reference)


class Reference:
    def __init__(self):
        self.asked = []

    def score(self, batches, per_token=False):
        self.asked.append(per_token)
        return [
            ReferenceScores(sums=torch.tensor(SUMS) * 2, per_token=LOG_PROBS * 2 if per_token else None)
            for _ in batches
        ]


@pytest.mark.parametrize(("average", "rows"), [(False, SUMS), (True, MEANS)])
def test_a_loss_gets_sums_and_means_of_policy_and_reference(average, rows):
    loss, reference = Recorder(), Reference()
    job = job_of(loss, reference)
    (target,) = job.targets([BATCH])
    outcome = job.outcome(BATCH, LOG_PROBS, target)
    (inputs,) = loss.seen
    assert inputs.policy.rows(average).tolist() == rows
    assert inputs.reference.rows(average).tolist() == [[2 * value for value in row] for row in rows]
    assert outcome.metrics["seen"].tolist() == [row[0] for row in SUMS]
    assert inputs.scores is SCORES


def test_per_token_log_probs_are_given_to_losses_that_need_them():
    loss, reference = Recorder(), Reference()
    job = job_of(loss, reference)
    job.outcome(BATCH, LOG_PROBS, job.targets([BATCH])[0])
    assert reference.asked == [True]
    (inputs,) = loss.seen
    assert inputs.policy.per_token.tolist() == LOG_PROBS.tolist()
    assert inputs.reference.per_token.tolist() == (LOG_PROBS * 2).tolist()


def test_other_losses_do_not_ask_for_them():
    reference = Reference()
    job = DPOJob(objective=build_objective("sigmoid"), reference=reference)
    job.targets([BATCH, BATCH])
    assert reference.asked == [False]


def test_a_loss_without_a_reference_gets_none():
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Alone(Recorder):
        needs: ClassVar[frozenset[Need]] = frozenset()

    loss = Alone()
    job = job_of(loss, None)
    assert [target.reference for target in job.targets([BATCH, BATCH])] == [None, None]
    job.outcome(BATCH, LOG_PROBS, job.targets([BATCH])[0])
    assert loss.seen[0].reference is None


def test_values_of_single_pairs_are_sums_without_gradient():
    job = DPOJob(objective=build_objective("sigmoid"), reference=Reference())
    (target,) = job.targets([BATCH])
    outcome = job.outcome(BATCH, LOG_PROBS.clone().requires_grad_(), target)
    assert tuple(outcome.values) == ROW_VALUES
    assert torch.stack([outcome.of_items(name) for name in ROW_VALUES[:2]], 1).tolist() == SUMS
    assert outcome.of_items("ref_rejected_logps").tolist() == target.reference.sums[:, 1].tolist()
    assert outcome.of_items("rewards/margins").tolist() == outcome.metrics["rewards/margins"].tolist()
    names = ("loss", *ROW_VALUES)
    assert not any(outcome.of_items(name).requires_grad for name in names)


def test_values_without_a_reference_are_those_of_the_policy():
    outcome = DPOJob(objective=build_objective("simpo"), reference=None).outcome(BATCH, LOG_PROBS, PairTargets())
    assert tuple(outcome.values) == ROW_VALUES[:2]


def test_the_console_shows_only_metrics_that_the_loss_has():
    def labels(job):
        return [column.label for column in job.columns]

    assert labels(DPOJob(objective=build_objective("sigmoid"), reference=Reference())) == ["accuracy", "margin"]
    assert labels(job_of(Recorder(), Reference())) == []
    mix = DPOJob(objective=build_objective("sigmoid,sft:0.5"), reference=Reference())
    assert labels(mix) == ["sigmoid", "sft", "accuracy", "margin"]


def test_the_weight_of_a_batch_is_its_number_of_pairs():
    assert DPOJob(objective=build_objective("sigmoid"), reference=Reference()).size(BATCH) == 2


@pytest.mark.usefixtures("one_rank")
def test_pairs_of_the_whole_batch_share_its_loss():
    """aot of two micro-batches, by its own formula over all four pairs."""
    objective = build_objective("aot:2,sigmoid", {"beta": 1.0, "average_log_prob": False})
    world = World(rank=0, local_rank=0, size=1, device=torch.device("cpu"))
    job = DPOJob(objective=objective, reference=Reference(), world=world)
    assert job.whole_batch
    batches = [SimpleNamespace(**vars(BATCH), indices=indices) for indices in ((5, 2), (1, 4))]
    log_probs = [LOG_PROBS, LOG_PROBS * 0.5]
    targets = job.share(batches, log_probs, job.targets(batches))
    outcomes = [job.outcome(*one) for one in zip(batches, log_probs, targets, strict=True)]
    # Margins of the policy 2, 1 and 1, 0.5; of the reference twice 4, 2. Sorted 0.5, 1, 1, 2 and 2, 2, 4, 4.
    loss = [-torch.nn.functional.logsigmoid(torch.tensor(float(m))).item() for m in (0.5 - 2, 1 - 2, 1 - 4, 2 - 4)]
    found = torch.cat([outcome.metrics["loss/aot"] for outcome in outcomes]).tolist()
    assert sorted(found) == pytest.approx(sorted(loss), rel=1e-6)
    assert found[0] == pytest.approx(loss[3], rel=1e-6)
    assert found[3] == pytest.approx(loss[0], rel=1e-6)


@pytest.mark.usefixtures("one_rank")
def test_answers_of_the_whole_batch_share_the_kl_term_of_kto():
    """The policy's mismatched rows are -6, -7, -3, -3.5, the reference's, in its second column, -12, -14, twice. The
    mean of the differences 6, 7, 9, 10.5 is 8.125."""
    objective = build_objective("kto", {"beta": 0.1}, '{"undesirable_weight": 2}')
    world = World(rank=0, local_rank=0, size=1, device=torch.device("cpu"))
    job = DPOJob(objective=objective, reference=Reference(), world=world)
    assert (job.item, job.metric_parts["rewards/chosen"]) == ("answers", "desirable")
    labels = (torch.tensor([True, False]), torch.tensor([False, True]))
    # Log-probs of the answers, -4 and -6, and of the mismatched rows; each row has its targets for itself.
    answers, others = torch.tensor([-1.0, -3.0, -2.0, -4.0]), torch.tensor([-1.0, -5.0, -7.0])
    halves = tuple(
        SimpleNamespace(**{**vars(BATCH), "target_counts": torch.tensor(counts)})
        for counts in ([[0, 2, 0], [0, 2, 0]], [[0, 2, 0], [0, 1, 0]])
    )
    batches = [
        SimpleNamespace(**{**vars(BATCH), "labels": label, "halves": halves}, indices=indices)
        for label, indices in zip(labels, ((5, 2), (1, 4)), strict=True)
    ]
    assert all((job.trained(batch), job.ahead(batch)) == halves for batch in batches)
    targets = job.share(batches, [others, others * 0.5], job.targets(batches))
    scored = (answers, answers * 0.5)
    outcomes = [job.outcome(*one) for one in zip(batches, scored, targets, strict=True)]
    assert torch.cat([outcome.metrics["kl"] for outcome in outcomes]).tolist() == pytest.approx([8.125] * 4)
    # Log-ratios 4, 6 and 6, 9.
    sigmoids = torch.sigmoid(0.1 * torch.tensor([8.125 - 4, 6 - 8.125, 6 - 8.125, 8.125 - 9])).tolist()
    expected = [weight * value for weight, value in zip((1, 2, 2, 1), sigmoids, strict=True)]
    assert torch.cat([outcome.losses for outcome in outcomes]).tolist() == pytest.approx(expected, rel=1e-6)


def test_metrics_of_answers_with_labels_are_those_of_their_part():
    """Answers of 2 and 3 tokens that count, the second undesirable."""
    job = DPOJob(objective=build_objective("bco"), reference=Reference())
    assert (job.metric_parts["lengths/chosen"], job.metric_parts["lengths/rejected"]) == ("desirable", "undesirable")
    batch = SimpleNamespace(
        **{**vars(BATCH), "target_counts": torch.tensor([[0, 2, 0], [0, 3, 0]]), "labels": torch.tensor([True, False])}
    )
    columns = torch.stack([LOG_PROBS[:5], torch.arange(5.0), torch.tensor([1.0, 0.0, 0.0, 1.0, 0.0])], 1)
    outcome = job.outcome(batch, columns, job.targets([batch])[0])
    assert tuple(outcome.metrics) == job.metrics
    assert outcome.metrics["lengths/chosen"].tolist() == [2, 0]
    assert outcome.metrics["lengths/rejected"].tolist() == [0, 3]
    found = {name: (one.sums.tolist(), one.counts.tolist()) for name, one in outcome.token_metrics.items()}
    assert found == {
        "nll": ([4, 0], [2, 0]),
        "entropy": ([0 + 1, 2 + 3 + 4], [2, 3]),
        "token_accuracy": ([1, 1], [2, 3]),
    }


def test_other_jobs_share_nothing():
    job = DPOJob(objective=build_objective("sigmoid"), reference=Reference())
    targets = job.targets([BATCH])
    assert not job.whole_batch
    assert super(DPOJob, job).share([BATCH], [LOG_PROBS], targets) is targets


def test_collisions_beside_log_probs_are_summed_over_rows():
    """The same sums by hand as of log-probs; other losses get the log-probs alone."""
    job = DPOJob(objective=build_objective("wpo,sigmoid"), reference=Reference())
    both = torch.stack((LOG_PROBS, LOG_PROBS / 10), 1).requires_grad_()
    (target,) = job.targets([BATCH])
    outcome = job.outcome(BATCH, both, target)
    # Means of log-probs minus collisions: 0.9 of (-2, -3), (-3, -7).
    assert outcome.metrics["weight"].tolist() == pytest.approx(torch.tensor([-4.5, -9.0]).exp().tolist())
    alone = DPOJob(objective=build_objective("sigmoid"), reference=Reference()).outcome(BATCH, LOG_PROBS, target)
    assert outcome.metrics["loss/sigmoid"].tolist() == alone.losses.tolist()
    outcome.losses.sum().backward()
    assert both.grad[:, 0].abs().sum() > 0
    assert both.grad[:, 1].abs().sum() == 0


@pytest.mark.parametrize("loss", ["sigmoid", "wpo"])
def test_distributions_are_the_last_columns(loss):
    entropies, hits = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]), torch.tensor([1.0, 0.0, 0.0, 1.0, 1.0, 0.0])
    collisions = [LOG_PROBS] if loss == "wpo" else []
    columns = torch.stack([LOG_PROBS, *collisions, entropies, hits], 1)
    job = DPOJob(objective=build_objective(loss), reference=Reference())
    (target,) = job.targets([BATCH])
    outcome = job.outcome(BATCH, columns, target)
    plain = job.outcome(BATCH, torch.stack([LOG_PROBS, *collisions], 1) if collisions else LOG_PROBS, target)
    assert torch.equal(outcome.losses, plain.losses)
    # By hand: rows of the first pair have the targets 1, 2 and 1, 3, those of the second 4, 5 and 6.
    sums = {name: one.sums.tolist() for name, one in outcome.token_metrics.items()}
    counts = {name: one.counts.tolist() for name, one in outcome.token_metrics.items()}
    assert sums == {"nll": [4, 6], "entropy": [1 + 2 + 1 + 3, 4 + 5 + 6], "token_accuracy": [1 + 1, 2]}
    assert counts == {"nll": [2, 2], "entropy": [4, 3], "token_accuracy": [4, 3]}
    assert set(plain.token_metrics) == {"nll"}


def test_lengths_are_tokens_that_count():
    job = DPOJob(objective=build_objective("sigmoid"), reference=Reference())
    metrics = job.outcome(BATCH, LOG_PROBS, job.targets([BATCH])[0]).metrics
    assert metrics["lengths/chosen"].tolist() == [2, 2]
    assert metrics["lengths/rejected"].tolist() == [2, 1]
    assert tuple(metrics) == job.metrics
