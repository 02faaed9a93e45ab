"""Start weights: whatever `--from_weight` names, behind one interface that gives tensors under the model's own names.

    .pth | Hugging Face folder | none -> WeightSource: configuration, names, shapes, tensors one at a time

One tensor at a time is what lets a ZeRO-3 model be filled shard by shard (`engine/build.py`).
"""

from __future__ import annotations

import abc
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

import minimind.model.modeling  # noqa: F401 - registers MiniMind with the Auto classes
from minimind.errors import MiniMindError, WeightsError
from minimind.model.configuration import MiniMindConfig
from minimind.weights.empty import empty_model, tensor_shapes
from minimind.weights.files import TensorFile, open_folder, open_pickled
from minimind.weights.names import HEAD, read_config, stacked_names

# Of layers, and of experts in one: a hundred times what models have.
_MOST_LAYERS = 20_000


class WeightSource(abc.ABC):
    """Where a model's tensors come from.

    Attributes:
        config: the model's configuration.
        origin: what a user would call it: a path, or "random (seed 42)".
        tokenizer_path: the folder with the tokenizer that belongs to the weights, if there is one.
    """

    config: PretrainedConfig
    origin: str
    tokenizer_path: Path | None = None

    @abc.abstractmethod
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Every tensor's shape, under the model's own names."""

    @abc.abstractmethod
    def read(self, name: str) -> Tensor:
        """One tensor, on the CPU, in the dtype that the source has."""

    @abc.abstractmethod
    def fingerprint(self) -> str:
        """A short hash of the content: the same weights have the same one wherever they lie."""

    def check_fit(self, expected: Mapping[str, tuple[int, ...]] | None = None) -> None:
        """Raise a WeightsError that lists every key and shape in which source and model differ.

        `expected` are the shapes of the model to be filled; without them, those of the source's own configuration.
        """
        shapes = self.shapes()
        expected = tensor_shapes(_model_of(self.config, self.origin)) if expected is None else expected
        problems = [f"missing: {name} {shape}" for name, shape in expected.items() if name not in shapes]
        problems += [f"unexpected: {name} {shape}" for name, shape in shapes.items() if name not in expected]
        problems += [
            f"wrong shape: {name} is {shapes[name]}, the model has {shape}"
            for name, shape in expected.items()
            if name in shapes and shapes[name] != shape
        ]
        if problems:
            shown = "\n".join(f"  {problem}" for problem in problems[:20])
            more = f"\n  ... and {len(problems) - 20} more" if len(problems) > 20 else ""
            raise WeightsError(f"{self.origin}: does not fit the model:\n{shown}{more}")


class MiniMindSource(WeightSource):
    """Tensors under MiniMind's own names: a `.pth`, or a folder of model type `minimind`."""

    def __init__(self, file: TensorFile, config: MiniMindConfig, tokenizer_path: Path | None = None) -> None:
        self.config, self.origin, self.tokenizer_path = config, str(file.path), tokenizer_path
        self._file = file
        self._parts = stacked_names(file)
        if config.tie_word_embeddings:
            self._parts.pop(HEAD, None)
        for name, parts in self._parts.items():
            if parts[0] != name and len(parts) != config.num_experts:
                raise WeightsError(
                    f"{self.origin}: {name} has {len(parts)} of {config.num_experts} experts: {', '.join(parts)}"
                )

    def shapes(self) -> dict[str, tuple[int, ...]]:
        out = {}
        for name, parts in self._parts.items():
            shape = self._file.shape(parts[0])
            if any(self._file.shape(part) != shape for part in parts):
                raise WeightsError(
                    f"{self.origin}: the experts of {name} differ in shape: "
                    + ", ".join(f"{part} {self._file.shape(part)}" for part in parts)
                )
            # Hugging Face folders that this project wrote hold the experts stacked already.
            out[name] = (len(parts), *shape) if parts[0] != name else shape
        return out

    def read(self, name: str) -> Tensor:
        parts = self._parts[name]
        if parts == [name]:
            return self._file[name]
        return torch.stack([self._file[part] for part in parts])

    def fingerprint(self) -> str:
        return _fingerprint(self)


class HuggingFaceSource(WeightSource):
    """A folder of any causal LM that transformers knows, read tensor by tensor where the names are the model's own."""

    def __init__(self, folder: Path, config: PretrainedConfig) -> None:
        self.config, self.origin, self.tokenizer_path = config, str(folder), folder
        self._tensors: Mapping[str, Tensor] = open_folder(folder)
        model = _model_of(config, self.origin)
        expected, aliases = tensor_shapes(model), set(model.state_dict())
        self._names = list(expected)
        if not set(expected) <= set(self._tensors):
            # Some architectures are stored under other names than they run with; transformers knows how to convert.
            self._tensors = _converted(folder)
        else:
            # A tied tensor may stand there under both names, and old files hold rotary tables.
            self._names += [n for n in self._tensors if n not in aliases and not n.endswith("rotary_emb.inv_freq")]

    def shapes(self) -> dict[str, tuple[int, ...]]:
        tensors = self._tensors
        if isinstance(tensors, TensorFile):
            return {name: tensors.shape(name) for name in self._names}
        return {name: tuple(tensors[name].shape) for name in self._names}

    def read(self, name: str) -> Tensor:
        return self._tensors[name]

    def fingerprint(self) -> str:
        return _fingerprint(self)


class RandomSource(WeightSource):
    """Fresh weights (`--from_weight none`), each tensor drawn from its own name and the seed: the same on every rank
    and for every number of ranks. Normal with the configuration's `initializer_range`, ones for norms."""

    def __init__(self, config: MiniMindConfig, seed: int) -> None:
        self.config, self.seed, self.origin = config, seed, f"random weights (seed {seed})"
        self._shapes = tensor_shapes(empty_model(config))

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return self._shapes

    def read(self, name: str) -> Tensor:
        shape = self._shapes[name]
        if len(shape) == 1:
            return torch.ones(shape)
        digest = hashlib.sha256(f"{self.seed}:{name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
        return torch.empty(shape).normal_(0.0, self.config.initializer_range, generator=generator)

    def fingerprint(self) -> str:
        return _fingerprint(self)


def open_weights(path: Path, untold: Mapping[str, Any]) -> WeightSource:
    """Open a MiniMind `.pth` or a Hugging Face folder.

    Args:
        path: an existing file or folder.
        untold: for a `.pth`, fields that tensors cannot tell (see `names.read_config`).

    Raises:
        WeightsError: missing, damaged, or of a model that transformers does not know.
    """
    if path.is_file():
        file = open_pickled(path)
        return MiniMindSource(file, read_config(file, untold))
    if not (path / "config.json").is_file():
        raise WeightsError(f"{path}: neither a .pth file nor a Hugging Face folder (no config.json there)")
    _check_depth(path / "config.json")
    try:
        config = AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        # transformers raises many kinds for a broken config.json.
        raise WeightsError(f"{path / 'config.json'}: not a usable configuration ({error})") from error
    if isinstance(config, MiniMindConfig):
        return MiniMindSource(open_folder(path), config, tokenizer_path=path)
    if type(config) not in AutoModelForCausalLM._model_mapping:
        raise WeightsError(f"{path}: model type {config.model_type!r} is no causal language model")
    return HuggingFaceSource(path, config)


def _check_depth(path: Path) -> None:
    """Refuse a config.json that declares so many layers or experts that making the model would not end.

    Raises:
        WeightsError: also where it is no JSON object.
    """

    def counts(values: dict[str, Any]) -> Iterator[tuple[str, float]]:
        for key, value in values.items():
            if isinstance(value, dict):
                yield from counts(value)
            elif isinstance(value, int | float) and re.search(r"(^|_)(num|n)_\w*(layer|expert)", key):
                yield key, value

    try:
        declared = dict(counts(json.loads(path.read_text(encoding="utf-8"))))
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise WeightsError(f"{path}: not a usable configuration ({error})") from error
    for key, value in declared.items():
        if value > _MOST_LAYERS:
            raise WeightsError(f"{path}: {key} is {value}; no model has more than {_MOST_LAYERS}")


def _model_of(config: PretrainedConfig, origin: str) -> PreTrainedModel:
    """An empty model of a configuration that a file has, whatever is in it."""
    try:
        return empty_model(config)
    except MiniMindError:
        raise
    except Exception as error:
        # Sizes that do not divide, are negative or do not fit in memory make models fail in ways of their own.
        raise WeightsError(
            f"{origin}: no model can be made of its configuration ({type(error).__name__}: {error})"
        ) from error


def _converted(folder: Path) -> dict[str, Tensor]:
    """The tensors of a folder as transformers converts them; nothing made up, nothing left out.

    It is the whole model, in the memory of each rank that asks: transformers converts no single tensors.

    Raises:
        WeightsError: tensors that are missing, left over or of another shape, which transformers only logs.
    """
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, dtype="auto", output_loading_info=True
        )
    except Exception as error:
        # transformers raises many kinds for weights that are not its configuration's.
        raise WeightsError(f"{folder}: cannot be loaded ({type(error).__name__}: {error})") from error
    problems = [
        f"{kind.removesuffix('_keys')}: {key}"
        for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")
        for key in sorted(map(str, info[kind]))
    ]
    if problems:
        listed = "\n".join(f"  {problem}" for problem in problems[:20])
        raise WeightsError(f"{folder}: does not fit its own config.json:\n{listed}")
    return dict(model.state_dict())


def tensors(source: WeightSource) -> Iterator[tuple[str, Tensor]]:
    """All tensors of a source, one after the other."""
    for name in source.shapes():
        yield name, source.read(name)


def _fingerprint(source: WeightSource) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors(source), key=lambda item: item[0]):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
