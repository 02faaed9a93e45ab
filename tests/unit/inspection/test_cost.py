"""Planned memory: that of plan/, with the tokens of the largest micro-batch."""

from __future__ import annotations

import dataclasses
import json

import pytest

from minimind.config import parse_settings
from minimind.inspection.cost import plan_memory
from minimind.model.configuration import MiniMindConfig
from minimind.plan.choice import Machine, StepLoad, ZeroChoice
from minimind.plan.memory import rank_memory
from minimind.plan.options import DS_CONFIGS
from minimind.plan.sizes import ModelSizes
from minimind.weights.construction import empty_model, tensor_shapes
from tests.unit.inspection.made import made_report

CONFIG = parse_settings(["--batch_size", "2", "--max_seq_len", "100"]).config
MACHINE = Machine(device_memory=2**30, on_cpu=True)
FILE, REFERENCE = (json.loads((DS_CONFIGS / f"{name}.json").read_text()) for name in ("zero2", "reference"))


@pytest.mark.parametrize(("largest", "tokens"), [(250, 250), (9999, 400)])
def test_memory_is_that_of_the_plan(largest, tokens):
    """At most 2 pairs of 2 rows with 100 tokens."""
    model = MiniMindConfig(hidden_size=64, num_hidden_layers=2)
    sizes = ModelSizes.of(model, tensor_shapes(empty_model(model)))
    packing = dataclasses.replace(made_report().packing, largest=largest)
    found = plan_memory(sizes, CONFIG, MACHINE, packing, FILE, REFERENCE)
    load = dataclasses.replace(StepLoad.of(CONFIG), tokens=tokens)
    choices = ZeroChoice.of(FILE), ZeroChoice.of(REFERENCE)
    assert found.peak == rank_memory(sizes, *choices, load, MACHINE).peak
    assert found.peak_at_limit == rank_memory(sizes, *choices, StepLoad.of(CONFIG), MACHINE).peak
    assert (found.available, found.device) == (2**30, "main memory")
