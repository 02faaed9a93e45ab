"""Rules about the course of a run: nothing left to learn, an evaluation that turns, nothing moves, likelihood is lost.

curves of logged steps and of evaluations -> rule -> Finding, or None
"""

from __future__ import annotations

import numpy as np

from minimind.diagnosis.curves import Curves, Finding


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
