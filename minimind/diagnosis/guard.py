"""The guard: finds in a run's curves that it goes wrong, and says what helps.

logged steps and evaluations of one held-out set -> Curves -> every rule of RULES -> Finding, or None

A rule is a pure function of curves. It names the metrics that it reads, and is silent where they do not exist, so that
it serves every job. The bounds are meant to be quiet: a finding is worth reading.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from minimind.diagnosis.pair_signals import (
    CORRELATION,
    DISPLACED,
    EQUAL_LENGTH_ACCURACY,
    EQUAL_LENGTHS,
    SATURATED,
)

# Share of held-out pairs that grow more wrong, and their number; see `mislabelled`.
STILL_WRONG, PAIRS = "still wrong", "pairs"
# Metrics that rules read, of logged steps and of evaluations (without the prefix); the rest need not be kept.
LOGGED = ("loss", "rewards/accuracies", "rewards/margins", "learning_rate")
EVALUATED = ("loss", "nll", "rewards/accuracies", "rewards/margins", "rewards/chosen")
# Pairs below which a share says little.
_FEW = 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class Point:
    """Metrics at a global step."""

    step: int
    metrics: Mapping[str, float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Curves:
    """What rules read.

    Attributes:
        logs: logged steps, in order.
        evaluations: of one held-out set, in order, with the signals of pair_signals.py; empty without one.
        total_steps: the run's last global step.
        log_ratios: rewards are log-ratios to a reference.
        logistic: the loss is -log sigmoid of the margin.
    """

    logs: Sequence[Point]
    evaluations: Sequence[Point] = ()
    total_steps: int
    log_ratios: bool = False
    logistic: bool = False

    def evaluated(self, name: str) -> list[tuple[int, float]]:
        """Step and value of a metric, at the evaluations that have it."""
        return _curve(self.evaluations, name)

    def logged(self, name: str) -> list[tuple[int, float]]:
        """Step and value of a metric, at the logged steps that have it."""
        return _curve(self.logs, name)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finding:
    """Something that goes wrong.

    Attributes:
        rule: name of the rule.
        step: global step of the numbers.
        text: what, with its numbers.
        remedy: what to try.
    """

    rule: str
    step: int
    text: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.text} (step {self.step}): {self.remedy}"


Rule = Callable[[Curves], Finding | None]


def displacement(curves: Curves) -> Finding | None:
    """Chosen answers lose likelihood while the margin grows.

    In two evaluations in a row most held-out pairs have a chosen answer below the reference, and margins are positive.
    Pal et al., 2024 (Smaug, arXiv 2402.13228); Razin et al., 2024 (arXiv 2410.08847).
    """
    # At step 0 rewards are rounding errors.
    shares = [(step, share) for step, share in curves.evaluated(DISPLACED) if step]
    margins = curves.evaluated("rewards/margins")
    if not curves.log_ratios or len(shares) < 2 or not margins or margins[-1][1] < 0.01:
        return None
    if min(share for _, share in shares[-2:]) < 0.6:
        return None
    return Finding(
        rule="displacement",
        step=shares[-1][0],
        text=f"{shares[-1][1]:.0%} of chosen answers have become less likely than under the reference",
        remedy="try --loss sigmoid:1,sft:0.2 or dpop",
    )


def length(curves: Curves) -> Finding | None:
    """The model learns the length: margins follow the difference of lengths, and pairs of equal lengths are not learnt.

    Singhal et al., 2023 (arXiv 2310.03716); Park et al., 2024 (R-DPO, arXiv 2403.19159).
    """
    if not curves.evaluations:
        return None
    latest = curves.evaluations[-1]
    names = (CORRELATION, EQUAL_LENGTH_ACCURACY, EQUAL_LENGTHS, "rewards/accuracies")
    if any(name not in latest.metrics for name in names):
        return None
    correlation, equal, number, accuracy = (latest.metrics[name] for name in names)
    if number < _FEW or abs(correlation) < 0.5 or accuracy < 0.6 or equal > accuracy - 0.1:
        return None
    kind = "longer" if correlation > 0 else "shorter"
    return Finding(
        rule="length",
        step=latest.step,
        text=(
            f"{kind} answers win: margins correlate by {correlation:+.2f} with the difference of lengths, and accuracy "
            f"is {equal:.2f} where both answers are about equally long, {accuracy:.2f} over all"
        ),
        remedy="try --average_log_prob 1, --loss rdpo, or pairs of similar lengths",
    )


def saturation(curves: Curves) -> Finding | None:
    """Most held-out pairs have margins at which the gradient of the logistic loss is gone.

    Rafailov et al., 2023 (arXiv 2305.18290): a pair's gradient has the weight sigmoid(-margin).
    """
    shares = curves.evaluated(SATURATED)
    if not curves.logistic or not shares or shares[-1][1] < 0.8:
        return None
    return Finding(
        rule="saturation",
        step=shares[-1][0],
        text=f"{shares[-1][1]:.0%} of held-out pairs have less than 1 % of the gradient that they began with",
        remedy="end here, or take harder pairs; more steps only raise margins",
    )


def memorised(curves: Curves) -> Finding | None:
    """Training pairs are all right by far, in three logged steps in a row: there is nothing left to learn from them."""
    right, losses = curves.logged("rewards/accuracies")[-3:], curves.logged("loss")[-3:]
    if not curves.logistic or len(right) < 3 or min(v for _, v in right) < 0.995 or max(v for _, v in losses) > 0.02:
        return None
    return Finding(
        rule="memorised",
        step=right[-1][0],
        text=f"training pairs are learnt: accuracy {right[-1][1]:.2f}, loss {losses[-1][1]:.4f}",
        remedy="fewer --epochs, or a lower --learning_rate",
    )


def over_optimisation(curves: Curves) -> Finding | None:
    """The evaluation turns while training improves: the loss of two evaluations in a row is above the best one.

    By at least a tenth of what the best one had gained. Gao et al., 2022 (arXiv 2210.10760); for DPO Rafailov et al.,
    2024 (arXiv 2406.02900).
    """
    held_out, trained = curves.evaluated("loss"), curves.logged("loss")
    if len(held_out) < 4:
        return None
    best_step, best = min(held_out[:-2], key=lambda point: point[1])
    gained = held_out[0][1] - best
    if min(value for _, value in held_out[-2:]) <= best + max(0.1 * gained, 1e-3):
        return None
    before = [value for step, value in trained if step <= best_step] or [value for _, value in trained[:1]]
    after = [value for step, value in trained if step > best_step]
    # Logged losses of single steps are noisy: the last ones before, against all after.
    if not after or np.mean(after[-3:]) >= np.mean(before[-3:]):
        return None
    return Finding(
        rule="over-optimisation",
        step=held_out[-1][0],
        text=(
            f"the held-out loss has turned: {best:.4f} at step {best_step}, now {held_out[-1][1]:.4f}, while the "
            f"training loss falls ({np.mean(before[-3:]):.4f} -> {np.mean(after[-3:]):.4f})"
        ),
        remedy="--save_best eval/loss --early_stop patience:3, fewer --epochs or a lower --learning_rate",
    )


def not_moving(curves: Curves) -> Finding | None:
    """After a quarter of the run nothing has moved: the held-out loss, or without one the margins of logged steps.

    Rounding of weights in bfloat16 alone moves a held-out loss of 0.69 by 2e-4 (100 pairs of the demo, learning rate
    1e-9); the bound is a thousandth. outlook.py estimates the same before the run.
    """
    held_out, margins = curves.evaluated("loss"), curves.logged("rewards/margins")
    if len(held_out) >= 2:
        step, first = held_out[-1][0], held_out[0][1]
        moved = max(abs(value - first) for _, value in held_out)
        still = moved < 1e-3 * max(abs(first), 1e-3)
        text = f"the held-out loss has moved by {moved:.0e} since step {held_out[0][0]}"
    elif len(margins) >= 2 and curves.log_ratios:
        # Logged margins are those of few pairs, each with its rounding.
        step, mean = margins[-1][0], abs(float(np.mean([value for _, value in margins])))
        still = mean < 1e-3
        text = f"the margin of the training pairs is {mean:.0e} on average so far"
    else:
        return None
    if not still or step < curves.total_steps / 4:
        return None
    rates = [value for at, value in curves.logged("learning_rate") if at <= step]
    rate = f", which is {max(rates):.1e} at most so far" if rates else ""
    return Finding(
        rule="not moving",
        step=step,
        text=text,
        remedy=f"raise --learning_rate{rate}, by a factor of 10 or more",
    )


def mislabelled(curves: Curves) -> Finding | None:
    """Pairs stay wrong, and more so at each of three evaluations, while most others are learnt.

    Swayamdipta et al., 2020 (arXiv 2009.10795); the remedies: Mitchell, 2023 (cDPO), Chowdhury et al., 2024
    (robust DPO, arXiv 2403.00409).
    """
    if not curves.evaluations:
        return None
    latest = curves.evaluations[-1]
    names = (STILL_WRONG, PAIRS, "rewards/accuracies")
    if any(name not in latest.metrics for name in names):
        return None
    share, number, accuracy = (latest.metrics[name] for name in names)
    if number < 2 * _FEW or share < 0.05 or accuracy < 0.6:
        return None
    return Finding(
        rule="label noise",
        step=latest.step,
        text=(
            f"{share:.0%} of held-out pairs are ranked wrongly, and more clearly at each of three evaluations, while "
            f"{accuracy:.0%} are right: labels may be flipped, in training pairs too"
        ),
        remedy="look at them; --loss robust, or --label_smoothing with the share of wrong labels",
    )


def forgetting(curves: Curves) -> Finding | None:
    """A token of held-out chosen answers is clearly less likely than at the start.

    By a tenth of its negative log-likelihood and by 0.05 nats. Pang et al., 2024 (arXiv 2404.19733), who add the
    likelihood of chosen to the loss.
    """
    likelihoods = curves.evaluated("nll")
    if len(likelihoods) < 2:
        return None
    (first_step, first), (step, now) = likelihoods[0], likelihoods[-1]
    if now - first < max(0.05, 0.1 * first):
        return None
    return Finding(
        rule="forgetting",
        step=step,
        text=f"a token of held-out chosen answers costs {now:.3f} nats, {first:.3f} at step {first_step}",
        remedy="try --loss sigmoid:1,sft:0.2, a larger --beta or a lower --learning_rate",
    )


RULES: Sequence[Rule] = (
    displacement,
    length,
    saturation,
    memorised,
    over_optimisation,
    not_moving,
    mislabelled,
    forgetting,
)


def _curve(points: Sequence[Point], name: str) -> list[tuple[int, float]]:
    return [(point.step, point.metrics[name]) for point in points if name in point.metrics]
