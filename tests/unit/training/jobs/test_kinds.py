"""The kinds of jobs: a configuration leads to its objective, to what rows become, and to its job."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from minimind.config import DPOConfig, parse_settings
from minimind.data.shapes import Items
from minimind.errors import ConfigError
from minimind.training.jobs.dpo import DPOJob
from minimind.training.jobs.kinds import KINDS, Parts, kind_of


@pytest.mark.parametrize(
    ("loss", "items"), [("sigmoid", Items.PAIRS), ("bco", Items.ANSWERS), ("kto", Items.MISMATCHED)]
)
def test_a_loss_over_pairs_says_what_rows_become(loss, items):
    kind = kind_of(DPOConfig())
    settings, objective = kind.choose(parse_settings(["--loss", loss]), None)
    assert kind.items(objective) is items
    # Only the answer with the label counts.
    assert settings.config.data.last_turn_only is (items is not Items.PAIRS)
    job = kind.make(objective, Parts(world=SimpleNamespace(), reference=SimpleNamespace()))
    assert isinstance(job, DPOJob)


def test_a_labelled_answer_is_the_last_turn():
    with pytest.raises(ConfigError, match="last_turn_only 0"):
        kind_of(DPOConfig()).choose(parse_settings(["--loss", "kto", "--last_turn_only", "0"]), None)


def test_defaults_of_options_that_a_checkpoint_lacks():
    assert KINDS["dpo"].default_options("sigmoid")["label_smoothing"] == 0
