"""Rules about held-out pairs: chosen answers that lose likelihood, length, vanished gradients, wrong labels.

an evaluation's metrics, and signals of its single pairs (pair_signals.py) -> rule -> Finding, or None
"""

from __future__ import annotations

from minimind.diagnosis.curves import Curves
from minimind.diagnosis.pair_signals import (
    CORRELATION,
    DISPLACED,
    EQUAL_LENGTH_ACCURACY,
    EQUAL_LENGTHS,
    SATURATED,
)
from minimind.diagnosis.rules.rule import Seen, rule

# Share of held-out pairs that grow more wrong, and their number; see `mislabelled`.
STILL_WRONG, PAIRS = "still wrong", "pairs"
# Pairs below which a share says little.
_FEW = 20
_ANSWERS_WIN = (
    "answers win: margins correlate by {correlation:+.2f} with the difference of lengths, and accuracy is {equal:.2f} "
    "where both answers are about equally long, {accuracy:.2f} over all"
)


@rule(
    "displacement",
    title="chosen answers lose likelihood",
    text=(
        "{share:.0%} of chosen answers have become less likely than under the reference, {before:.0%} at step {earlier}"
    ),
    remedy="try --loss sigmoid:1,sft:0.2 or dpop",
)
def displacement(curves: Curves) -> Seen | None:
    """Chosen answers lose likelihood while the margin grows.

    In two evaluations in a row most held-out pairs have a chosen answer below the reference, and margins are positive;
    a share that falls by more than a tenth of itself is on its way back. Pal et al., 2024 (Smaug, arXiv 2402.13228);
    Razin et al., 2024 (arXiv 2410.08847).
    """
    # At step 0 rewards are rounding errors.
    shares = [(step, share) for step, share in curves.evaluated(DISPLACED) if step]
    margins = curves.evaluated("rewards/margins")
    if not curves.log_ratios or len(shares) < 2 or not margins or margins[-1][1] < 0.01:
        return None
    (earlier, before), (step, share) = shares[-2:]
    # Two evaluations in a row: in the first steps shares swing.
    if min(before, share) < 0.6 or share < 0.9 * before:
        return None
    return Seen(step=step, values={"share": share, "before": before, "earlier": earlier})


@rule(
    "length",
    title="length decides",
    text={"longer": f"longer {_ANSWERS_WIN}", "shorter": f"shorter {_ANSWERS_WIN}"},
    remedy="try --average_log_prob 1, --loss rdpo, or pairs of similar lengths",
)
def length(curves: Curves) -> Seen | None:
    """The model learns the length: margins follow the difference of lengths, and pairs of equal lengths are not learnt.

    Singhal et al., 2023 (arXiv 2310.03716); Park et al., 2024 (R-DPO, arXiv 2403.19159).
    """
    latest = curves.latest(CORRELATION, EQUAL_LENGTH_ACCURACY, EQUAL_LENGTHS, "rewards/accuracies")
    if latest is None:
        return None
    step, (correlation, equal, number, accuracy) = latest
    # All four at once: long answers may be better, and then pairs of equal lengths are ranked rightly too.
    if number < _FEW or abs(correlation) < 0.5 or accuracy < 0.6 or equal > accuracy - 0.1:
        return None
    return Seen(
        step=step,
        values={"correlation": correlation, "equal": equal, "accuracy": accuracy},
        form="longer" if correlation > 0 else "shorter",
    )


@rule(
    "saturation",
    title="gradients are gone",
    text="{share:.0%} of held-out pairs have less than 1 % of the gradient that they began with",
    remedy="end here, or take harder pairs; more steps only raise margins",
)
def saturation(curves: Curves) -> Seen | None:
    """Most held-out pairs have margins at which the gradient of the logistic loss is gone.

    Rafailov et al., 2023 (arXiv 2305.18290): a pair's gradient has the weight sigmoid(-margin).
    """
    latest = curves.latest(SATURATED)
    if not curves.logistic or latest is None:
        return None
    step, (share,) = latest
    return Seen(step=step, values={"share": share}) if share >= 0.8 else None


@rule(
    "label noise",
    title="labels may be wrong",
    text=(
        "{share:.0%} of held-out pairs are ranked wrongly, and more clearly at each of three evaluations, while "
        "{accuracy:.0%} are right: labels may be flipped, in training pairs too"
    ),
    remedy="look at them; --loss robust, or --label_smoothing with the share of wrong labels",
)
def mislabelled(curves: Curves) -> Seen | None:
    """Pairs stay wrong, and more so at each of three evaluations, while most others are learnt.

    Swayamdipta et al., 2020 (arXiv 2009.10795); the remedies: Mitchell, 2023 (cDPO), Chowdhury et al., 2024
    (robust DPO, arXiv 2403.00409).
    """
    latest = curves.latest(STILL_WRONG, PAIRS, "rewards/accuracies")
    if latest is None:
        return None
    step, (share, number, accuracy) = latest
    if number < 2 * _FEW or share < 0.05 or accuracy < 0.6:
        return None
    return Seen(step=step, values={"share": share, "accuracy": accuracy})
