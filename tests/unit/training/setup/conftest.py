"""Fixtures of the tests of minimind/training/setup/."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from minimind.config import parse_settings
from minimind.data.table_build import SILENT
from minimind.objective.choice import choose_objective
from minimind.ranks.world import World
from minimind.training.jobs.kinds import with_labelled_turns
from minimind.training.setup.training_data import TrainingData, load_data
from tests.conftest import pair

ALONE = World(rank=0, local_rank=0, size=1, device=torch.device("cpu"))


@pytest.fixture
def load(tokenizer, tmp_path):
    """`load_data` of a DPO run with the demo's tokenizer and a cache in the test's own folder."""

    def run(path, *flags, world=ALONE) -> TrainingData:
        settings = parse_settings(["--cache_dir", str(tmp_path / "cache"), "--data_path", str(path), *flags])
        settings, objective = choose_objective(settings)
        settings = with_labelled_turns(settings, objective)
        return load_data(SimpleNamespace(settings=settings, tokenizer=tokenizer, objective=objective), world, SILENT)

    return run


@pytest.fixture
def file(write_rows):
    """Ten pairs."""
    return write_rows(*(pair(f"Number {i}?", "Yes.", "No!") for i in range(10)))
