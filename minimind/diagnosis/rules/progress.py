"""Rules about the course of a run: nothing left to learn, an evaluation that turns, nothing moves, likelihood is lost.

curves of logged steps and of evaluations -> rule -> Finding, or None
"""

from __future__ import annotations

import numpy as np

from minimind.diagnosis.curves import Curves
from minimind.diagnosis.rules.rule import Seen, rule


@rule(
    "memorised",
    title="training pairs are learnt by heart",
    text="training pairs are learnt: accuracy {accuracy:.2f}, loss {loss:.4f}",
    remedy="fewer --epochs, or a lower --learning_rate",
)
def memorised(curves: Curves) -> Seen | None:
    """Training pairs are all right by far, in three logged steps in a row: there is nothing left to learn from them.

    Zhang et al., 2017 (arXiv 1611.03530): a network fits any labels, so a training loss near 0 says nothing of others.
    """
    right, losses = curves.logged("rewards/accuracies")[-3:], curves.logged("loss")[-3:]
    if not curves.logistic or len(right) < 3 or min(v for _, v in right) < 0.995 or max(v for _, v in losses) > 0.02:
        return None
    return Seen(step=right[-1][0], values={"accuracy": right[-1][1], "loss": losses[-1][1]})


@rule(
    "over-optimisation",
    title="the held-out loss has turned",
    text=(
        "the held-out loss has turned: {best:.4f} at step {best_step}, now {now:.4f}, while the training loss falls "
        "({before:.4f} -> {after:.4f})"
    ),
    remedy="--save_best eval/loss --early_stop patience:3, fewer --epochs or a lower --learning_rate",
)
def over_optimisation(curves: Curves) -> Seen | None:
    """The evaluation turns while training improves: the loss of two evaluations in a row is above the best one.

    By at least a tenth of what the best one had gained. Gao et al., 2022 (arXiv 2210.10760); for DPO Rafailov et al.,
    2024 (arXiv 2406.02900).
    """
    held_out, trained = curves.evaluated("loss"), curves.logged("loss")
    if len(held_out) < 4:
        return None
    # The last two are what is judged: they must not set the best value themselves.
    best_step, best = min(held_out[:-2], key=lambda point: point[1])
    # Relative to the gain: a turn of a thousandth matters where a run has gained a hundredth.
    gained = held_out[0][1] - best
    if min(value for _, value in held_out[-2:]) <= best + max(0.1 * gained, 1e-3):
        return None
    earlier = [value for step, value in trained if step <= best_step] or [value for _, value in trained[:1]]
    later = [value for step, value in trained if step > best_step]
    if not later:
        return None
    # Logged losses of single steps are noisy: the last ones before, against all after.
    before, after = float(np.mean(earlier[-3:])), float(np.mean(later[-3:]))
    if after >= before:
        return None
    step, now = held_out[-1]
    return Seen(step=step, values={"best": best, "best_step": best_step, "now": now, "before": before, "after": after})


@rule(
    "not moving",
    title="nothing moves",
    text={
        "loss": "the held-out loss has moved by {moved:.0e} since step {first_step}",
        "margin": "the margin of the training pairs is {margin:.0e} on average so far",
    },
    remedy="raise --learning_rate, which is {rate:.1e} at most so far, by a factor of 10 or more",
)
def not_moving(curves: Curves) -> Seen | None:
    """After a quarter of the run nothing has moved: the held-out loss, or without one the margins of logged steps.

    A step of Adam moves a weight by about the learning rate at most (Kingma and Ba, 2015, arXiv 1412.6980, section
    2.1). Rounding of weights in bfloat16 alone moves a held-out loss of 0.69 by 2e-4 (100 pairs of the demo, learning
    rate 1e-9); the bound is a thousandth. outlook.py estimates the same before the run.
    """
    held_out, margins = curves.evaluated("loss"), curves.logged("rewards/margins")
    values: dict[str, float | str]
    if len(held_out) >= 2:
        step, (first_step, first) = held_out[-1][0], held_out[0]
        moved = max(abs(value - first) for _, value in held_out)
        still = moved < 1e-3 * max(abs(first), 1e-3)
        form, values = "loss", {"moved": moved, "first_step": first_step}
    elif len(margins) >= 2 and curves.log_ratios:
        # Logged margins are those of few pairs, each with its rounding.
        step, mean = margins[-1][0], abs(float(np.mean([value for _, value in margins])))
        still = mean < 1e-3
        form, values = "margin", {"margin": mean}
    else:
        return None
    rates = [value for at, value in curves.logged("learning_rate") if at <= step]
    if not still or step < curves.total_steps / 4 or not rates:
        return None
    return Seen(step=step, values={**values, "rate": max(rates)}, form=form)


@rule(
    "forgetting",
    title="chosen answers are forgotten",
    text="a token of held-out chosen answers costs {now:.3f} nats, {first:.3f} at step {first_step}",
    remedy="try --loss sigmoid:1,sft:0.2, a larger --beta or a lower --learning_rate",
)
def forgetting(curves: Curves) -> Seen | None:
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
    return Seen(step=step, values={"now": now, "first": first, "first_step": first_step})
