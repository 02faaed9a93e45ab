"""Tensors in files: `.pth`, `.bin` and safetensors behind one read-only mapping, memory-mapped, never unpickled freely.

file or folder -> TensorFile: names, shapes, and tensors read when asked for
"""

from __future__ import annotations

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


class TensorFile(Mapping[str, Tensor]):
    """Read-only mapping from a tensor's name in the file to the tensor; nothing is in memory before it is read."""

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
            # A dtype that this torch lacks shows only here, and each in its own way.
            raise WeightsError(f"{self.path}: {name!r} cannot be read ({type(error).__name__}: {error})") from error

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of one tensor, without reading it.

        Raises:
            WeightsError: there is none of that name.
        """
        if name not in self._tensors:
            raise WeightsError(f"{self.path}: has no tensor {name!r}")
        value = self._tensors[name]
        if isinstance(value, Tensor):
            return tuple(value.shape)
        file, stored_name = value
        return tuple(file.get_slice(stored_name).get_shape())


def open_pickled(path: Path) -> TensorFile:
    """Open a `.pth` or `.bin` written by `torch.save`: memory-mapped, `weights_only`, so that no code in it runs.

    Raises:
        WeightsError: missing, damaged, not a plain dictionary of tensors, or a MiniMind resume file.
    """
    if not path.is_file():
        raise WeightsError(f"{path}: no such weight file")
    try:
        # Only the zip format of torch >= 1.6 can be memory-mapped; MiniMind's own files are of that kind.
        zipped = zipfile.is_zipfile(path)
        if zipped:
            _check_archive(path)
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except WeightsError:
        raise
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path}: holds more than tensors, or is no torch file; only plain weights are loaded, never code. "
            "Save `model.state_dict()` alone."
        ) from error
    except Exception as error:
        # A damaged file makes torch raise almost anything.
        raise WeightsError(f"{path}: not a readable torch file ({type(error).__name__}: {error})") from error
    if isinstance(state, dict) and "model" in state and "optimizer" in state:
        raise WeightsError(
            f"{path}: a MiniMind resume file (model, optimizer, step); give the weight file without '_resume'"
        )
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise WeightsError(f"{path}: not a dictionary of tensors; save `model.state_dict()` alone")
    for name, tensor in state.items():
        if not isinstance(name, str) or not _is_plain(tensor):
            raise WeightsError(f"{path}: {name!r} is no plain tensor that is whole in the file, under a name")
    return TensorFile(path, dict(state))


def _check_archive(path: Path) -> None:
    """Refuse an archive that would unpack to more than it is; torch never compresses."""
    with zipfile.ZipFile(path) as archive:
        packed = [entry.filename for entry in archive.infolist() if entry.compress_type != zipfile.ZIP_STORED]
    if packed:
        raise WeightsError(f"{path}: {packed[0]!r} is compressed, which torch never does; save it with torch.save")


def _is_plain(tensor: Tensor) -> bool:
    """Whether a tensor's numbers are all there: not sparse, not on "meta", not a few stretched to many by strides."""
    if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_complex() or tensor.is_quantized:
        return False
    return tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()


def open_folder(folder: Path) -> TensorFile:
    """Open the weights of a Hugging Face folder: safetensors or pickled, in one file or in shards with an index.

    Raises:
        WeightsError: no weights there, a shard missing or damaged.
    """
    single, pickled = folder / "model.safetensors", folder / "pytorch_model.bin"
    if (folder / _SAFETENSORS_INDEX).is_file():
        shards = _shards(folder / _SAFETENSORS_INDEX)
        return TensorFile(folder, {k: v for shard in shards for k, v in _open_safetensors(shard).items()})
    if single.is_file():
        return TensorFile(folder, _open_safetensors(single))
    if (folder / _PICKLED_INDEX).is_file():
        shards = _shards(folder / _PICKLED_INDEX)
        return TensorFile(folder, {k: v for shard in shards for k, v in open_pickled(shard).items()})
    if pickled.is_file():
        return open_pickled(pickled)
    raise WeightsError(f"{folder}: no model.safetensors, no {_SAFETENSORS_INDEX} and no pytorch_model.bin there")


def _open_safetensors(path: Path) -> dict[str, Any]:
    try:
        file = safe_open(path, framework="pt")
        return {name: (file, name) for name in file.keys()}  # noqa: SIM118 - it is no dictionary
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path}: not a readable safetensors file ({error})") from error


def _shards(index: Path) -> list[Path]:
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
        raise WeightsError(f"{index}: names files that are not there: {', '.join(missing)}")
    return shards
