"""--device against the device of a rank."""

from __future__ import annotations

import re

import pytest
import torch

from minimind.training.setup.device import device_problem

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.mark.parametrize(
    ("given", "device", "ranks", "said"),
    [
        ("cpu", CPU, 2, None),
        ("cuda", GPU, 2, None),
        ("cuda:0", GPU, 1, None),
        ("cpu", GPU, 1, "on cuda; put DS_ACCELERATOR=cpu CUDA_VISIBLE_DEVICES= in front"),
        ("cuda", CPU, 1, "on cpu: torch .* sees no CUDA GPU here"),
        ("cuda:0", CPU, 1, "on cpu"),
        ("cuda:1", GPU, 1, "gave this rank cuda:0; .* deepspeed --include localhost:1"),
        ("cuda:0", GPU, 2, "2 ranks have a device each; .*--include localhost:0,1"),
        ("cpu:0", CPU, 1, "expected cpu, cuda or cuda:N"),
        ("gpu", GPU, 1, "expected cpu, cuda or cuda:N"),
        ("cuda:x", GPU, 1, "expected cpu, cuda or cuda:N"),
    ],
)
def test_the_flag_is_checked(given, device, ranks, said, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    problem = device_problem(given, device, ranks)
    if said is None:
        assert problem is None
    else:
        assert re.search(said, problem)


@pytest.mark.parametrize(("visible", "fits"), [("3", True), ("2", False), ("3,0", False)])
def test_the_gpu_that_the_launcher_made_visible_keeps_its_number(visible, fits, monkeypatch):
    """As `deepspeed --include localhost:3` does, where torch calls it cuda:0."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert (device_problem("cuda:3", GPU, 1) is None) == fits
