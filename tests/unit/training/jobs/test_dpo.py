"""A step that was not finite tells which of its micro-batches were not."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from minimind.data.packs import pack
from minimind.data.table import PreferencePair
from minimind.errors import TrainingError
from minimind.ranks.process import World
from minimind.training.jobs.dpo import Objective, train_step
from minimind.training.metrics import MetricSums

WORLD = World(rank=0, local_rank=0, size=1, device=torch.device("cpu"))


def pair(line):
    tokens, mask = np.arange(3, 9, dtype=np.int32), np.array([0, 0, 0, 1, 1, 1], dtype=np.uint8)
    other = tokens.copy()
    other[3:] += 10
    return PreferencePair(chosen=tokens, rejected=other, chosen_mask=mask, rejected_mask=mask, prefix=3, line=line)


class Policy:
    """Scores every target with -1, but for what the test puts there; its last step fails as DeepSpeed's check does."""

    def __init__(self, broken, aux_loss) -> None:
        self.world, self.broken, self.aux_loss, self.seen = WORLD, broken, aux_loss, 0

    def score(self, batch):
        self.seen += 1
        log_probs = torch.full((len(batch.target_ids),), -1.0)
        if self.seen in self.broken:
            log_probs[-1] = self.broken[self.seen]
        return log_probs, torch.tensor(self.aux_loss if self.seen == 4 else 0.0)

    def backward(self, loss, last):
        self.last = last

    def step(self):
        if self.last:
            raise TrainingError("the gradient is not finite")


@pytest.mark.parametrize(
    ("broken", "aux_loss", "finite"),
    [
        ({2: -torch.inf}, 0.0, [True, False, True, True]),
        ({1: torch.nan, 3: torch.inf}, 0.0, [False, True, False, True]),
        ({}, torch.nan, [True, True, True, False]),
        ({}, 0.0, [True, True, True, True]),  # finite losses whose gradient overflowed
    ],
)
def test_micro_batches_that_were_not_finite_are_told_apart(broken, aux_loss, finite):
    batches = [pack([pair(line), pair(line + 1)]) for line in (1, 3, 5, 7)]
    reference = SimpleNamespace(row_sums=lambda packs: [torch.full((batch.num_pairs, 2), -3.0) for batch in packs])
    with pytest.raises(TrainingError) as caught:
        train_step(
            Policy(broken, aux_loss),
            reference,
            Objective(beta=0.1, average_log_prob=False),
            batches,
            MetricSums(WORLD),
        )
    assert caught.value.finite == finite
