"""Reads weight files: `.pth`, `.bin` and safetensors behind one read-only mapping.

    file -> open_pickled -> TensorFile          names, shapes, and tensors that are read on access
    folder -> open_folder -> TensorFile

Files are memory-mapped where their format allows it. Nothing in a file can run code: a pickle is loaded with
`weights_only=True`, and a file that holds anything but plain tensors is refused.
"""

from __future__ import annotations

import functools
import json
import pickle
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from minimind.errors import WeightsError

_SAFETENSORS_INDEX = "model.safetensors.index.json"
_PICKLED_INDEX = "pytorch_model.bin.index.json"
# Names of dtypes in safetensors.
_FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class TensorFile(Mapping[str, Tensor]):
    """Read-only mapping from the name of a tensor to the tensor, on the CPU, in the dtype of the file.

    Args:
        path: the file or folder, for messages.
        tensors: for each name a memory-mapped tensor, or a safetensors file and the name in it.
    """

    def __init__(self, path: Path, tensors: dict[str, Any]) -> None:
        self.path = path
        self._tensors = tensors

    def __getitem__(self, name: str) -> Tensor:
        value = self._tensors[name]
        if isinstance(value, Tensor):
            return value
        file, stored_name = value
        try:
            return file.get_tensor(stored_name)
        except Exception as error:
            # safetensors reads a tensor only now. A dtype that this torch lacks raises different errors.
            raise WeightsError(f"{self.path}: {name!r} cannot be read ({type(error).__name__}: {error})") from error

    def __contains__(self, name: object) -> bool:
        # `Mapping` would read the tensor to answer this.
        return name in self._tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of one tensor, without reading its content.

        Raises:
            WeightsError: there is no tensor with this name.
        """
        if name not in self._tensors:
            raise WeightsError(f"{self.path}: has no tensor {name!r}")
        value = self._tensors[name]
        # A slice of safetensors knows its shape from the header of the file.
        if isinstance(value, Tensor):
            return tuple(value.shape)
        file, stored_name = value
        return tuple(file.get_slice(stored_name).get_shape())

    def widest(self) -> torch.dtype:
        """The dtype that holds every floating-point tensor without rounding; contents are not read."""
        found = {dtype for name in self if (dtype := self._dtype(name)) is not None}
        return functools.reduce(torch.promote_types, found) if found else torch.float32

    def _dtype(self, name: str) -> torch.dtype | None:
        """Dtype of a floating-point tensor of at least 16 bits; None for others."""
        value = self._tensors[name]
        if isinstance(value, Tensor):
            return value.dtype if value.dtype in _FLOATS.values() else None
        file, stored_name = value
        return _FLOATS.get(file.get_slice(stored_name).get_dtype())


def open_pickled(path: Path) -> TensorFile:
    """Open a `.pth` or `.bin` file that `torch.save` has written.

    Raises:
        WeightsError: the file is missing, damaged, a MiniMind resume file, or not a plain dictionary of tensors.
    """
    if not path.is_file():
        raise WeightsError(f"{path}: no such weight file")
    try:
        # Only the zip format of torch >= 1.6 can be memory-mapped. MiniMind's files have it; older ones are read whole.
        zipped = zipfile.is_zipfile(path)
        if zipped:
            _refuse_compressed(path)
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except WeightsError:
        raise
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path}: not a torch file, or it contains objects other than tensors, which are never loaded because they "
            "can run code; save `model.state_dict()` alone"
        ) from error
    except Exception as error:
        # torch raises many types for a damaged file.
        raise WeightsError(f"{path}: not a readable torch file ({type(error).__name__}: {error})") from error
    if isinstance(state, dict) and "model" in state and "optimizer" in state:
        raise WeightsError(
            f"{path}: this is a MiniMind resume file (model, optimizer, step); give the weight file without '_resume'"
        )
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise WeightsError(f"{path}: not a dictionary of tensors; save `model.state_dict()` alone")
    # `weights_only` still allows sparse, quantized and strided tensors, which later code would read wrongly.
    for name, tensor in state.items():
        if not isinstance(name, str) or not _is_plain(tensor):
            raise WeightsError(f"{path}: {name!r} is not a plain dense tensor stored in full under a name")
    return TensorFile(path, dict(state))


def _refuse_compressed(path: Path) -> None:
    """Refuse a compressed archive: a few kilobytes could expand to more than the memory. torch never compresses."""
    with zipfile.ZipFile(path) as archive:
        compressed = [entry.filename for entry in archive.infolist() if entry.compress_type != zipfile.ZIP_STORED]
    if compressed:
        raise WeightsError(f"{path}: {compressed[0]!r} is compressed, which torch never does; save it with torch.save")


def _is_plain(tensor: Tensor) -> bool:
    """Whether a tensor is dense, real, on the CPU, and not larger than its storage.

    A crafted file can claim a huge shape over a few stored numbers by a stride of 0.
    """
    if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_complex() or tensor.is_quantized:
        return False
    return tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()


def open_folder(folder: Path) -> TensorFile:
    """Open the weights of a Hugging Face folder: safetensors or pickled, in one file or in shards with an index.

    Where a folder has both formats, safetensors are read.

    Raises:
        WeightsError: the folder has no weights, or a shard is missing or damaged.
    """
    single, pickled = folder / "model.safetensors", folder / "pytorch_model.bin"
    if (folder / _SAFETENSORS_INDEX).is_file():
        # Opening a safetensors file reads only its header, so all shards can be open at once.
        shards = _shards(folder / _SAFETENSORS_INDEX)
        return TensorFile(folder, {k: v for shard in shards for k, v in open_safetensors(shard).items()})
    if single.is_file():
        return TensorFile(folder, open_safetensors(single))
    if (folder / _PICKLED_INDEX).is_file():
        shards = _shards(folder / _PICKLED_INDEX)
        return TensorFile(folder, {k: v for shard in shards for k, v in open_pickled(shard).items()})
    if pickled.is_file():
        return open_pickled(pickled)
    raise WeightsError(f"{folder}: has no model.safetensors, no {_SAFETENSORS_INDEX} and no pytorch_model.bin")


def open_safetensors(path: Path) -> dict[str, Any]:
    """Names in a safetensors file -> the open file, and the name in it.

    Raises:
        WeightsError: the file is missing or damaged.
    """
    try:
        file = safe_open(path, framework="pt")
        return {name: (file, name) for name in file.keys()}  # noqa: SIM118 - not a dictionary
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path}: not a readable safetensors file ({error})") from error


def _shards(index: Path) -> list[Path]:
    """Paths of the shards that an index names, each once. A crafted index must not reach outside its folder."""
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        shards = [index.parent / name for name in names]
        missing = [shard.name for shard in shards if not shard.is_file()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise WeightsError(f"{index}: not a readable index of weight files ({error})") from error
    elsewhere = [name for name in names if Path(name).name != name]
    if elsewhere:
        raise WeightsError(f"{index}: names files outside its folder: {', '.join(elsewhere)}")
    if missing:
        raise WeightsError(f"{index}: names missing files: {', '.join(missing)}")
    return shards
