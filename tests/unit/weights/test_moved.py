"""How many weights differ once both are stored in a dtype, by hand and against all weights."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from minimind.weights import moved
from minimind.weights.moved import shares_moved

DTYPES = ("float32", "bfloat16", "float16")


def start(**tensors):
    return SimpleNamespace(read=lambda name: tensors[name])


def test_a_change_below_a_dtype_s_spacing_is_lost():
    before = torch.ones(4)
    # The spacing above 1 is 2^-7 in bfloat16, 2^-10 in float16, 2^-23 in float32; half of it is rounded away.
    after = before + torch.tensor([0.0, 2.0**-20, 2.0**-10, 2.0**-7])
    assert shares_moved({"w": after}, start(w=before), DTYPES) == {
        "float32": 0.75, "bfloat16": 0.25, "float16": 0.5,
    }  # fmt: skip


def test_start_weights_of_16_bits_are_compared_as_they_were_read():
    before = torch.full((8,), 0.1).half()
    assert shares_moved({"w": before.float()}, start(w=before), DTYPES) == dict.fromkeys(DTYPES, 0.0)


def test_tensors_count_by_their_size():
    before = {"large": torch.zeros(30, 10), "small": torch.zeros(100)}
    after = {"large": torch.zeros(30, 10), "small": torch.ones(100)}
    assert shares_moved(after, start(**before), ["float32"]) == {"float32": 0.25}


def test_of_large_tensors_an_even_sample_counts(monkeypatch):
    monkeypatch.setattr(moved, "_SAMPLE", 640)
    generator = torch.Generator().manual_seed(0)
    before = torch.zeros(1000, 100)
    # A part of the rows has moved, as where few tokens of a vocabulary were met.
    after = (torch.arange(1000)[:, None] % 4 == 0) * torch.rand(1000, 100, generator=generator)
    found = shares_moved({"w": after}, start(w=before), ["float32"])["float32"]
    assert found == pytest.approx(0.25, abs=0.1)
    sample = moved._sample(torch.arange(100_000))
    assert (len(sample), sample[0], sample[-1]) == (640, 0, 99_999)
