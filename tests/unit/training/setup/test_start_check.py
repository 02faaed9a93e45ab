"""The comparison of policy and reference before the first update."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from minimind.errors import TrainingError
from minimind.objective.losses import build_objective
from minimind.objective.rows import ReferenceScores
from minimind.ranks.world import World
from minimind.training.setup.start_check import START_TOLERANCE, check_finite, check_start

pytestmark = pytest.mark.usefixtures("one_rank")
WORLD = World(rank=0, local_rank=0, size=1, device=torch.device("cpu"))
# Two pairs with 4 targets in each row of the first, 1 in each row of the second.
COUNTS = torch.tensor([[0, 4, 4], [0, 1, 1]])
LOG_PROBS = torch.tensor([-1.0] * 10)


class Batch(SimpleNamespace):
    def to_device(self, device):
        return self


BATCH = Batch(target_counts=COUNTS, indices=(7, 9))


def place(index):
    return f"line {index + 1}"


def policy(log_probs=LOG_PROBS):
    """Remembers the order of its calls."""
    calls = []
    return SimpleNamespace(
        world=WORLD,
        dtype="float32",
        calls=calls,
        eval=lambda: calls.append("eval"),
        train=lambda: calls.append("train"),
        score=lambda batch: calls.append("score") or (log_probs, torch.zeros(())),
    )


def reference(*sums):
    return SimpleNamespace(
        score=lambda batches: [ReferenceScores(sums=torch.tensor(sums))],
        mismatch=lambda worst, index, place, start: f"{worst:.3f} at {index}, {place}, start {start:.4f}",
    )


def test_equal_models_pass_in_eval_mode():
    one = policy()
    check_start(one, reference([-4.0, -4.0], [-1.0, -1.0]), BATCH, "float32", build_objective("sigmoid"), place)
    assert one.calls == ["eval", "score", "train"]


@pytest.mark.parametrize(("difference", "passes"), [(0.9, True), (1.1, False)])
def test_the_tolerance_of_a_sum_grows_with_the_square_root_of_its_targets(difference, passes):
    """A row of 4 targets may differ by twice the tolerance."""
    limit = 2 * START_TOLERANCE["float32"]
    other = reference([-4.0 - difference * limit, -4.0], [-1.0, -1.0])
    check = (policy(), other, BATCH, "float32", build_objective("sigmoid"), place)
    if passes:
        check_start(*check)
    else:
        with pytest.raises(TrainingError) as caught:
            check_start(*check)
        # The mean over 4 targets differs by a quarter of the sum's difference.
        assert str(caught.value) == f"{difference * limit / 4:.3f} at 7, line 8, start {math.log(2):.4f}"
        assert caught.value.agreed


def test_a_log_prob_that_is_not_a_number_is_a_mismatch():
    other = reference([-4.0, -4.0], [math.nan, -1.0])
    with pytest.raises(TrainingError, match="inf at 9, line 10"):
        check_start(policy(), other, BATCH, "bfloat16", build_objective("sigmoid"), place)


def test_a_reference_that_is_another_model_may_differ():
    one = policy()
    check_finite(one, reference([-9.0, -1.0], [-5.0, -7.0]), BATCH, place)
    assert one.calls == ["eval", "score", "train"]


def test_another_reference_must_be_finite():
    with pytest.raises(TrainingError, match="the reference's log-probs of line 10 are not finite before") as caught:
        check_finite(policy(), reference([-4.0, -4.0], [-1.0, -math.inf]), BATCH, place)
    assert caught.value.agreed
    # The last of chosen's targets of the first pair.
    broken = LOG_PROBS.clone()
    broken[3] = math.nan
    with pytest.raises(TrainingError, match="the policy's log-probs of line 8 are not finite before"):
        check_finite(policy(broken), reference([-4.0, -4.0], [-1.0, -1.0]), BATCH, place)
