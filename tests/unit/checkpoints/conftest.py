"""One rank, and its checkpoints in a temporary folder."""

from __future__ import annotations

import pytest
import torch

from minimind.checkpoints.store import Checkpoints
from minimind.ranks.world import World
from tests.unit.checkpoints.fake_engine import DESCRIBED


@pytest.fixture
def world():
    return World(rank=0, local_rank=0, size=1, device=torch.device("cpu"))


@pytest.fixture
def checkpoints(tmp_path, world):
    return Checkpoints(tmp_path / "checkpoints", world, DESCRIBED, keep=None)
