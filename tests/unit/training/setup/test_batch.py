"""The global batch of a checkpoint is kept on any number of ranks; if it cannot be, the error lists splits that fit."""

from __future__ import annotations

import json

import pytest
import torch

from minimind.checkpoints.find import Checkpoint
from minimind.checkpoints.manifest import Manifest
from minimind.config import parse_settings
from minimind.errors import ConfigError
from minimind.ranks.world import World
from minimind.training.setup.batch import keep_global_batch
from minimind.training.setup.prepare import _policy_config
from tests.conftest import REPO


def saved(ranks, batch_size, accumulation_steps) -> Manifest:
    batch = {"batch_size": batch_size, "accumulation_steps": accumulation_steps}
    return Manifest(step=1, stream={}, identity={}, batch=batch, sharding={"ranks": ranks}, files={})


@pytest.mark.parametrize(
    ("was", "ranks", "flags", "expected"),
    [
        ((2, 3, 2), 2, "", (3, 2)),  # same ranks: unchanged
        ((2, 3, 2), 1, "", (3, 4)),  # half the ranks, twice the accumulation
        ((2, 3, 2), 4, "", (3, 1)),
        ((2, 3, 2), 6, "", (2, 1)),  # batch_size is made smaller
        ((2, 3, 2), 3, "", (2, 2)),  # 4 pairs per rank, which batch_size 3 does not divide
        ((1, 1, 12), 12, "", (1, 1)),
        ((2, 3, 2), 1, "--batch_size 6", (6, 2)),  # flags are kept
        ((2, 3, 2), 1, "--accumulation_steps 2", (6, 2)),
        ((2, 3, 2), 1, "--batch_size 4 --accumulation_steps 3", (4, 3)),
    ],
)
def test_global_batch_is_kept(was, ranks, flags, expected):
    settings = keep_global_batch(parse_settings(flags.split()), saved(*was), ranks)
    got = (settings.config.optimisation.batch_size, settings.config.optimisation.accumulation_steps)
    assert got == expected
    assert ranks * got[0] * got[1] == was[0] * was[1] * was[2]
    for name in ("batch_size", "accumulation_steps"):
        assert settings.origins[name] == ("flag" if name in flags else "checkpoint")


@pytest.mark.parametrize(
    ("ranks", "flags", "message"),
    [
        (5, "", "12 pairs per global step .2 ranks x batch_size 3 x accumulation_steps 2., which 5 ranks cannot share "
                "equally; 1, 2, 3, 4, 6, 12 ranks can"),
        (1, "--batch_size 5", "12 for each of 1 ranks, which batch_size 5 .flag. does not divide; drop it, or give one "
                              "of 1, 2, 3, 4, 6, 12"),
        (1, "--batch_size 3 --accumulation_steps 2", "batch_size 3 .flag. and accumulation_steps 2 .flag. give another "
                                                     "number; drop one"),
    ],
)  # fmt: skip
def test_an_impossible_split_is_refused_with_possible_ones(ranks, flags, message):
    with pytest.raises(ConfigError, match=message):
        keep_global_batch(parse_settings(flags.split()), saved(2, 3, 2), ranks)


@pytest.mark.parametrize(
    ("fixed", "ranks", "expected"),
    [
        ({"train_batch_size": 16}, 2, (8, 1)),  # unchanged
        ({"train_batch_size": 16}, 8, (2, 1)),
        ({"train_batch_size": 16}, 1, (8, 2)),
        ({"train_batch_size": 16, "train_micro_batch_size_per_gpu": 4}, 2, (4, 2)),  # values of the file are kept
        ({"gradient_accumulation_steps": 2}, 4, (2, 2)),
        ({"train_batch_size": "auto"}, 4, (4, 1)),
    ],
)
def test_the_checkpoint_fills_what_the_deepspeed_file_leaves_open(fixed, ranks, expected, tmp_path):
    path = tmp_path / "ds.json"
    path.write_text(json.dumps({**json.loads((REPO / "ds_configs/zero2.json").read_text()), **fixed}))
    world = World(rank=0, local_rank=0, size=ranks, device=torch.device("cpu"))
    checkpoint = Checkpoint(path=tmp_path, manifest=saved(2, 8, 1), damaged={})
    resolved = _policy_config(parse_settings(["--deepspeed", str(path)]), world, checkpoint)
    config = resolved.settings.config
    assert (config.optimisation.batch_size, config.optimisation.accumulation_steps) == expected
    assert resolved.values["train_batch_size"] == 16
