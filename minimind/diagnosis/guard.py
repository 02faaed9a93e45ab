"""The guard: finds in a run's curves that it goes wrong, and says what helps.

logged steps, evaluations of one held-out set, saves -> Curves -> every rule of RULES -> Finding, or None

A rule is a pure function of curves. It names the metrics that it reads, and is silent where they do not exist, so that
it serves every job. The bounds are meant to be quiet: a finding is worth reading.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from minimind.diagnosis.rules.pairs import displacement, length, mislabelled, saturation
from minimind.diagnosis.rules.progress import forgetting, memorised, not_moving, over_optimisation
from minimind.diagnosis.rules.rule import Rule
from minimind.diagnosis.rules.weights import DEAD, EXPECTED, dead_experts, lost_updates

# Metrics that rules read, of logged steps and of evaluations (without the prefix); the rest need not be kept.
LOGGED = ("loss", "rewards/accuracies", "rewards/margins", "learning_rate", DEAD, EXPECTED)
EVALUATED = ("loss", "nll", "rewards/accuracies", "rewards/margins", "rewards/chosen")

# Rules that read an evaluation judge each set of held-out data by itself, the others the run.
OF_SETS: Sequence[Rule] = (
    displacement,
    length,
    saturation,
    over_optimisation,
    not_moving,
    mislabelled,
    forgetting,
)
OF_RUN: Sequence[Rule] = (memorised, dead_experts, lost_updates)
RULES: Sequence[Rule] = (*OF_SETS, *OF_RUN)
BY_NAME: Mapping[str, Rule] = {rule.name: rule for rule in RULES}
