"""Writes safetensors, in one file or in shards with an index, one shard in memory at a time.

shapes -> huggingface_hub's split by size -> for each shard: read its tensors, write it
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save_file
from torch import Tensor

# transformers' own limit.
MAX_SHARD_SIZE = "5GB"
INDEX = "model.safetensors.index.json"


def write_shards(
    folder: Path,
    shapes: Mapping[str, tuple[int, ...]],
    dtype: torch.dtype,
    read: Callable[[str], Tensor],
    max_shard_size: int | str = MAX_SHARD_SIZE,
) -> list[Path]:
    """Write tensors as `model.safetensors`, or as shards with an index; returns the paths of all files.

    Args:
        folder: an existing folder.
        shapes: name -> shape of each tensor, in the order of the files.
        dtype: of all tensors.
        read: gives a tensor of this dtype; its shape is that of `shapes`.
        max_shard_size: of one file, in bytes or such as 5GB; a larger tensor has a file of its own.

    Raises:
        OSError, SafetensorError: a file cannot be written.
    """
    # Tensors without memory: the split needs sizes alone.
    empty = {name: torch.empty(shape, dtype=dtype, device="meta") for name, shape in shapes.items()}
    split = split_torch_state_dict_into_shards(empty, max_shard_size=max_shard_size)
    paths = []
    for file, names in split.filename_to_tensors.items():
        # Copies, because tensors may be views of a stack or a file; safetensors refuses those that share memory.
        tensors = {name: read(name).clone(memory_format=torch.contiguous_format) for name in names}
        save_file(tensors, folder / file, metadata={"format": "pt"})
        paths.append(folder / file)
    if split.is_sharded:
        parameters = sum(tensor.numel() for tensor in empty.values())
        index = {
            "metadata": {"total_parameters": parameters, **split.metadata},
            "weight_map": dict(sorted(split.tensor_to_filename.items())),
        }
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
        paths.append(folder / INDEX)
    return paths
