"""Two real ranks: the reference is a shard, and a mixture of experts has the gradients of one plain process."""

from __future__ import annotations

import pytest

from tests.distributed.launching import launch

pytestmark = pytest.mark.distributed


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_reference_is_a_shard_and_experts_train_with_an_idle_one(stage):
    done = launch("tests/distributed/workers/engines.py", stage, ranks=2).succeeded()
    assert done.output.count("engines agree with one plain process") == 2


@pytest.mark.parametrize(("file", "as_one"), [("reference.json", True), ("reference_offload.json", False)])
def test_a_rank_alone_gathers_nothing_by_collectives(file, as_one):
    """Weights that rest in CPU memory are still fetched block by block."""
    done = launch("tests/distributed/workers/alone.py", file).succeeded()
    assert f"gathers: [], gathered as one: {as_one}" in done.output
