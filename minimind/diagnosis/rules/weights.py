"""Rules about weights: experts that no token reaches, and updates that the written files have lost.

router's load of logged steps (expert_load.py), weights of saves (weights/moved.py) -> rule -> Finding, or None
"""

from __future__ import annotations

from minimind.diagnosis.curves import Curves
from minimind.diagnosis.rules.rule import Seen, rule

# Metrics of logged steps: share of all layers' experts without a token, and tokens that an expert gets on average.
DEAD, EXPECTED = "experts/dead", "experts/tokens"
# Metrics of saves: share of the weights that differ from the start weights, by the dtype of the file.
MOVED = "moved/"
FLOAT32 = f"{MOVED}float32"
# An expert that gets this many tokens on average misses a window by chance with a probability of nearly 0.
_ENOUGH = 100
# Windows in a row.
_TIMES = 3
# Share of the changed weights of which the file has to keep the change.
_KEPT = 0.5


@rule(
    "dead experts",
    title="experts die",
    text=(
        "{share:.1%} of the experts have got no token in {windows} logged windows, where an expert gets {tokens:,.0f} "
        "on average"
    ),
    remedy="raise --router_aux_loss_coef, or lower --learning_rate",
)
def dead_experts(curves: Curves) -> Seen | None:
    """Experts of a mixture get no token in three windows of logged steps in a row: their weights train no more.

    Shazeer et al., 2017 (arXiv 1701.06538, section 4): a router that favours few experts trains them more, which makes
    it favour them more. Fedus et al., 2021 (Switch Transformers, arXiv 2101.03961): the auxiliary loss against it.
    """
    dead, expected = curves.logged(DEAD)[-_TIMES:], curves.logged(EXPECTED)[-_TIMES:]
    if len(dead) < _TIMES or min(share for _, share in dead) == 0 or min(number for _, number in expected) < _ENOUGH:
        return None
    (step, share), (_, tokens) = dead[-1], expected[-1]
    return Seen(step=step, values={"share": share, "windows": _TIMES, "tokens": tokens})


@rule(
    "lost updates",
    title="rounding loses the training",
    text="the written weights keep few of the changes of training: {shares} of the weights that have changed",
    remedy="launch/export.py --dtype float32 writes them from the checkpoint; or a higher --learning_rate",
)
def lost_updates(curves: Curves) -> Seen | None:
    """A written file has lost most of what training changed: updates below the spacing of its dtype are rounded away.

    After a quarter of the run, so that weights had time to move. Gupta et al., 2015 (arXiv 1502.02551); Zamirai et al.,
    2020 (arXiv 2010.06192): rounding to the nearest number cancels small updates.
    """
    if not curves.saves or curves.saves[-1].step < curves.total_steps / 4:
        return None
    latest = curves.saves[-1].metrics
    changed = latest.get(FLOAT32, 0.0)
    kept = {
        # A file's rounding may move a weight that training did not, hence at most 1.
        name.removeprefix(MOVED): min(1.0, share / changed)
        for name, share in latest.items()
        if changed and name.startswith(MOVED) and name != FLOAT32
    }
    lost = {dtype: share for dtype, share in kept.items() if share < _KEPT}
    if not lost:
        return None
    shares = ", ".join(f"{dtype} {share:.0%}" for dtype, share in lost.items())
    return Seen(step=curves.saves[-1].step, values={"shares": shares})
