"""Two real ranks: the reference is a shard, and a mixture of experts has the gradients of one plain process."""

from __future__ import annotations

import pytest

from tests.distributed.launching import launch

pytestmark = pytest.mark.distributed


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_reference_is_a_shard_and_experts_train_with_an_idle_one(stage):
    done = launch("tests/distributed/workers/engines.py", stage, ranks=2).succeeded()
    assert done.output.count("engines agree with one plain process") == 2
