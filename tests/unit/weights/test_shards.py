"""Shards of safetensors."""

from __future__ import annotations

import json

import pytest
import torch

from minimind.weights.files import open_folder
from minimind.weights.shards import INDEX, write_shards

SHAPES = {"a": (10, 10), "b": (10, 10), "c": (5,), "d": (40, 10)}


@pytest.fixture
def tensors():
    stack = torch.randn(2, 10, 10)
    return {"a": stack[0], "b": stack[1].t(), "c": torch.randn(5), "d": torch.randn(40, 10)}


@pytest.mark.parametrize(("size", "files"), [("5GB", 1), (900, 2), (400, 4), (100, 4)])
def test_tensors_come_back_and_files_keep_to_their_size(size, files, tensors, tmp_path):
    read = []
    paths = write_shards(tmp_path, SHAPES, torch.float32, lambda name: read.append(name) or tensors[name], size)
    assert sorted(read) == sorted(SHAPES)  # each once
    assert sorted(path.name for path in paths) == sorted(path.name for path in tmp_path.iterdir())
    assert len(list(tmp_path.glob("*.safetensors"))) == files
    written = open_folder(tmp_path)
    assert set(written) == set(SHAPES)
    assert all(torch.equal(written[name], tensor) for name, tensor in tensors.items())
    if files > 1:
        index = json.loads((tmp_path / INDEX).read_text())
        assert index["metadata"] == {"total_parameters": 605, "total_size": 2420}
        assert set(index["weight_map"]) == set(SHAPES)
