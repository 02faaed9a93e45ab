"""Preparing a run, as every rank does before it builds engines, for the error that it ends in."""

from __future__ import annotations

import pytest
import torch

from minimind.config import parse_settings
from minimind.errors import MiniMindError
from minimind.ranks.world import World
from minimind.training.setup.prepare import prepare
from tests.conftest import REPO


def one_rank() -> World:
    """A world of one rank on the CPU, without a process group."""
    return World(rank=0, local_rank=0, size=1, device=torch.device("cpu"))


def preparation_error(*flags: object) -> MiniMindError:
    """The error of preparing a run with these flags; under zero2.json if they name no DeepSpeed file."""
    arguments = [str(flag) for flag in flags]
    if "--deepspeed" not in arguments:
        arguments += ["--deepspeed", str(REPO / "ds_configs/zero2.json")]
    with pytest.raises(MiniMindError) as caught:
        prepare(parse_settings(arguments), one_rank())
    return caught.value
