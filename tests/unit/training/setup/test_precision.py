"""The precision of a run whose user gives none."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from transformers import LlamaConfig

from minimind.config import parse_settings
from minimind.model.configuration import MiniMindConfig
from minimind.native.processor import Products
from minimind.ranks.world import World
from minimind.training.setup import precision
from minimind.training.setup.precision import lacks_bfloat16, with_precision

LLAMA, MINIMIND = SimpleNamespace(config=LlamaConfig()), SimpleNamespace(config=MiniMindConfig())


@pytest.mark.parametrize(
    ("source", "lacking", "flags", "expected"),
    [
        (LLAMA, True, (), ("float32", precision.NO_BFLOAT16)),
        (LLAMA, True, ("--dtype", "bfloat16"), ("bfloat16", "flag")),
        (LLAMA, False, (), ("bfloat16", "default")),
        (MINIMIND, True, (), ("bfloat16", "default")),
    ],
)
def test_other_models_train_in_float32_on_a_cpu_without_bfloat16(source, lacking, flags, expected):
    settings = with_precision(parse_settings(list(flags)), source, lacking, None)
    assert (settings.values["dtype"], settings.origins["dtype"]) == expected


@pytest.mark.parametrize("was", ["float32", "bfloat16"])
def test_a_resumed_run_keeps_its_precision_on_another_machine(was):
    checkpoint = SimpleNamespace(manifest=SimpleNamespace(identity={"dtype": was}))
    settings = with_precision(parse_settings([]), LLAMA, was == "bfloat16", checkpoint)
    assert (settings.values["dtype"], settings.origins["dtype"]) == (was, "checkpoint")


@pytest.mark.parametrize("products", list(Products))
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_what_a_machine_lacks(products, device, monkeypatch):
    monkeypatch.setattr(precision.processor, "fastest_products", lambda: products)
    world = World(rank=0, local_rank=0, size=1, device=torch.device(device))
    assert lacks_bfloat16(world) == (device == "cpu" and products is Products.FLOAT32)
