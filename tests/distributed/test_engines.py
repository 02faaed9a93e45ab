"""Engines on real ranks: the reference is sharded; a mixture of experts has the gradients of one plain process."""

from __future__ import annotations

import pytest

from tests.distributed.launching import launch

pytestmark = pytest.mark.distributed


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_reference_is_sharded_and_experts_train_with_one_unused_expert(stage):
    done = launch("tests/distributed/workers/engines.py", stage, ranks=2).succeeded()
    assert done.output.count("engines agree with one plain process") == 2


@pytest.mark.parametrize(("file", "as_one"), [("reference.json", True), ("reference_offload.json", False)])
def test_single_rank_gathers_weights_without_collectives(file, as_one):
    """An offloaded reference fetches its weights block by block instead of as one module."""
    done = launch("tests/distributed/workers/alone.py", file).succeeded()
    assert f"gathers: [], gathered as one: {as_one}" in done.output
