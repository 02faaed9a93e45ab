"""The float32 weights of a checkpoint as whole tensors, on one process and without an engine.

    files of all ranks -> SavedWeights: parameter -> shape, and its pieces -> read(name) -> one whole tensor

Files are mapped into memory, so only the tensor that is read is in memory.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from minimind.engine.patches.checkpoint_files import (
    ModelFile,
    model_file,
    model_files,
    read_shard_file,
    shard_files,
)
from minimind.errors import CheckpointError

# DeepSpeed names what the engine wraps, the scorer, whose attribute `model` is the model.
_WRAPPER = "model."
_HALVES = (torch.float16, torch.bfloat16)


class SavedWeights:
    """The parameters of the model in a checkpoint of any ZeRO stage and number of ranks, by the model's own names.

    Trained ones are the optimizer's float32 weights; frozen ones, and buffers, are as the engine had them.

    Attributes:
        trained: names of the parameters that the optimizer has, in the model's order.

    Args:
        folder: the checkpoint.

    Raises:
        CheckpointError: files that are not arranged as DeepSpeed writes them.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._pieces: dict[str, list[Tensor]] = {}
        try:
            model = ModelFile(model_file(folder))
            shards = shard_files(folder)
            if shards and len(shards) != model.ranks:
                raise ValueError(f"optimizer files of {len(shards)} instead of {model.ranks} ranks")
            for rank, path in enumerate(shards):
                self._add_shard(path, model, rank)
            self._set_shapes(model, sharded=bool(shards))
            self.trained = [name for name in self._shapes if name in self._pieces]
            self._add_untrained(folder, model)
        except (OSError, ValueError, KeyError, IndexError, TypeError, RuntimeError, AttributeError) as error:
            raise CheckpointError(f"{folder}: is not arranged as DeepSpeed writes checkpoints ({error!r})") from error
        except Exception as error:
            # torch's unpickler has an exception of its own for objects that it refuses.
            raise CheckpointError(f"{folder}: cannot be read ({type(error).__name__}: {error})") from error

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each tensor."""
        return dict(self._shapes)

    def read(self, name: str) -> Tensor:
        """One whole tensor on the CPU: float32 if it trained, else in the dtype of the file.

        Raises:
            CheckpointError: the files do not have all of its elements.
        """
        pieces = self._pieces[name]
        flat = pieces[0].flatten() if len(pieces) == 1 else torch.cat([piece.flatten() for piece in pieces])
        shape = torch.Size(self._shapes[name])
        # ZeRO-3 pads frozen parameters to a multiple of the ranks; trained ones are cut where they are read.
        if len(flat) < shape.numel():
            raise CheckpointError(f"{self.folder}: {shape.numel() - len(flat)} elements of {name} are missing")
        return flat[: shape.numel()].view(shape)

    def _add_shard(self, path: Path, model: ModelFile, rank: int) -> None:
        """Add one rank's float32 weights; at every stage they follow those of the ranks before it."""
        shard = read_shard_file(path, model, rank)
        for master, ranges in zip(shard.masters, shard.ranges, strict=True):
            for saved in ranges:
                piece = master[saved.offset : saved.offset + saved.numel]
                self._pieces.setdefault(_own_name(saved.name), []).append(piece)

    def _set_shapes(self, model: ModelFile, *, sharded: bool) -> None:
        if not sharded:
            # Stage 0: the model's own parameters are the weights, all of them float32.
            self._pieces = {_own_name(name): [tensor] for name, tensor in model.weights.items()}
            self._shapes = {_own_name(name): tuple(tensor.shape) for name, tensor in model.weights.items()}
            halves = [name for name, (tensor,) in self._pieces.items() if tensor.dtype in _HALVES]
            if halves:
                raise ValueError(f"16-bit weights at ZeRO stage 0 ({halves[0]}), without their float32 values")
            return
        for group in model.shapes:
            self._shapes |= {_own_name(name): tuple(shape) for name, shape in group.items()}
        if set(self._shapes) != set(self._pieces):
            differing = ", ".join(sorted(set(self._shapes) ^ set(self._pieces))[:5])
            raise ValueError(f"parameters without a shape, or shapes without one: {differing}")

    def _add_untrained(self, folder: Path, model: ModelFile) -> None:
        """Add frozen parameters and buffers."""
        for name, tensor in model.weights.items():
            # At ZeRO-3 a parameter has no elements here.
            if _own_name(name) not in self._pieces and tensor.numel():
                self._shapes[_own_name(name)], self._pieces[_own_name(name)] = tuple(tensor.shape), [tensor]
        if not model.frozen:
            return
        for path in model_files(folder):
            for name, (shape, share) in ModelFile(path).frozen.items():
                # Read above: below ZeRO-3 they are whole in the file.
                if name in model.weights and model.weights[name].numel():
                    continue
                self._shapes[_own_name(name)] = tuple(shape)
                self._pieces.setdefault(_own_name(name), []).append(share)


def _own_name(name: str) -> str:
    return name.removeprefix(_WRAPPER)
