"""Start weights: the value of `--from_weight` behind one interface, with tensors under the model's own names.

    .pth | Hugging Face folder | none -> WeightSource: configuration, names, shapes, tensors one at a time

A source gives one tensor at a time, so that a ZeRO-3 model can be filled shard by shard (`engine/build.py`) without
the whole model in the memory of each rank.
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
from minimind.weights.construction import empty_model, tensor_shapes
from minimind.weights.files import TensorFile, open_folder, open_pickled
from minimind.weights.inferred_config import infer_config
from minimind.weights.names import EMBEDDING, HEAD, stacked_names
from minimind.weights.run_folder import exported_folder
from minimind.weights.ties import check_ties, tied_names

# Limit for the number of layers and of experts in a config.json: about a hundred times that of the largest models.
_MAX_LAYERS = 20_000


class WeightSource(abc.ABC):
    """The origin of a model's tensors.

    Attributes:
        config: the model's configuration.
        origin: name for messages: a path, or "random weights (seed 42)".
        tokenizer_path: the folder with the tokenizer of these weights, or None.
        packed_layers: names of the layers whose weights are packed in 4 bits (`QuantizedSource`).
    """

    config: PretrainedConfig
    origin: str
    tokenizer_path: Path | None = None
    packed_layers: tuple[str, ...] = ()

    @abc.abstractmethod
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shape of each tensor, under the model's own names."""

    @abc.abstractmethod
    def read(self, name: str) -> Tensor:
        """One tensor, on the CPU, in the dtype of the source."""

    def fingerprint(self) -> str:
        """The first 16 hex digits of a SHA-256 over all tensors, independent of the file format and the path."""
        digest = hashlib.sha256()
        # Sorted by name: files store the same tensors in different orders.
        for name in sorted(self.shapes()):
            tensor = self.read(name)
            digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
            # As bytes, since numpy has no bfloat16; flat, since a scalar has no view as bytes.
            digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:16]

    def check_fit(self, expected: Mapping[str, tuple[int, ...]] | None = None) -> None:
        """Compare the tensors of the source with those that a model needs.

        Args:
            expected: shapes of the model to be filled; by default those of a model with the source's configuration.

        Raises:
            WeightsError: keys or shapes differ; the message lists the first 20 differences.
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
    """MiniMind weights: a `.pth`, or a Hugging Face folder of model type `minimind`.

    Raises:
        WeightsError: a layer does not have all its experts.
    """

    def __init__(self, file: TensorFile, config: MiniMindConfig, tokenizer_path: Path | None = None) -> None:
        self.config, self.origin, self.tokenizer_path = config, str(file.path), tokenizer_path
        self._file = file
        self._parts = stacked_names(file)
        # MiniMind's files hold a tied head a second time; the model has it only as the embedding.
        if config.tie_word_embeddings and self._parts.pop(HEAD, None):
            check_ties([(EMBEDDING, HEAD)], file, self.origin)
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
            # Folders that this project has written contain stacked experts: one part, with the name of the stack.
            out[name] = (len(parts), *shape) if parts[0] != name else shape
        return out

    def read(self, name: str) -> Tensor:
        parts = self._parts[name]
        if parts == [name]:
            return self._file[name]
        return torch.stack([self._file[part] for part in parts])


class HuggingFaceSource(WeightSource):
    """A folder of a causal language model that transformers knows.

    Tensors are read one by one if the file uses the model's own names; otherwise transformers converts all at once.

    Raises:
        WeightsError: the weights cannot be read or converted, or the configuration makes no model.
    """

    def __init__(self, folder: Path, config: PretrainedConfig) -> None:
        self.config, self.origin, self.tokenizer_path = config, str(folder), folder
        file = open_folder(folder)
        self._tensors: Mapping[str, Tensor] = file
        model = _model_of(config, self.origin)
        expected, aliases = tensor_shapes(model), set(model.state_dict())
        self._names = list(expected)
        if not set(expected) <= set(self._tensors):
            # Some architectures use other names in files than in the model; transformers has the conversion.
            self._tensors = _converted(folder, file)
        else:
            check_ties(tied_names(model), self._tensors, self.origin)
            # Names beyond the model's are reported by `check_fit`, with two exceptions: the second name of a tied
            # tensor, and rotary tables, which old files contain and models now compute.
            self._names += [n for n in self._tensors if n not in aliases and not n.endswith("rotary_emb.inv_freq")]

    def shapes(self) -> dict[str, tuple[int, ...]]:
        tensors = self._tensors
        if isinstance(tensors, TensorFile):
            return {name: tensors.shape(name) for name in self._names}
        return {name: tuple(tensors[name].shape) for name in self._names}

    def read(self, name: str) -> Tensor:
        return self._tensors[name]


class RandomSource(WeightSource):
    """Random weights (`--from_weight none`): normal with standard deviation `initializer_range`, ones for norms.

    Each tensor has its own generator, seeded with the run's seed and the tensor's name. So the values are the same on
    every rank, for every number of ranks and in every order of reading.
    """

    def __init__(self, config: MiniMindConfig, seed: int) -> None:
        self.config, self.seed, self.origin = config, seed, f"random weights (seed {seed})"
        self._shapes = tensor_shapes(empty_model(config))

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return self._shapes

    def read(self, name: str) -> Tensor:
        shape = self._shapes[name]
        if len(shape) == 1:  # MiniMind has no biases: its only vectors are the weights of norms
            return torch.ones(shape)
        digest = hashlib.sha256(f"{self.seed}:{name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
        return torch.empty(shape).normal_(0.0, self.config.initializer_range, generator=generator)


def open_weights(path: Path, extra_fields: Mapping[str, Any]) -> WeightSource:
    """Open a MiniMind `.pth`, a Hugging Face folder, or the folder of a run, which holds one.

    Args:
        path: an existing file or folder.
        extra_fields: for a `.pth`, configuration fields that shapes do not determine (see `infer_config`).

    Raises:
        WeightsError: the path is missing or damaged, or transformers does not know the model.
    """
    if path.is_file():
        file = open_pickled(path)
        return MiniMindSource(file, infer_config(file, extra_fields))
    path = exported_folder(path)
    if not (path / "config.json").is_file():
        raise WeightsError(f"{path}: neither a .pth file nor a Hugging Face folder (no config.json there)")
    _check_declared_sizes(path / "config.json")
    try:
        config = AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        # transformers raises many types for a broken config.json.
        raise WeightsError(f"{path / 'config.json'}: not a usable configuration ({error})") from error
    if isinstance(config, MiniMindConfig):
        return MiniMindSource(open_folder(path), config, tokenizer_path=path)
    if type(config) not in AutoModelForCausalLM._model_mapping:
        raise WeightsError(f"{path}: model type {config.model_type!r} is not a causal language model")
    try:
        config.get_text_config()
    except ValueError as error:
        raise WeightsError(f"{path / 'config.json'}: has more than one half that reads text ({error})") from error
    return HuggingFaceSource(path, config)


def _check_declared_sizes(path: Path) -> None:
    """Refuse a config.json with so many layers or experts that the construction of the model would never finish.

    Raises:
        WeightsError: a number is above the limit, or the file is not a JSON object.
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
        if value > _MAX_LAYERS:
            raise WeightsError(f"{path}: {key} is {value}; the limit is {_MAX_LAYERS}")


def _model_of(config: PretrainedConfig, origin: str) -> PreTrainedModel:
    """An empty model of a configuration from a file, which may be damaged or crafted.

    Raises:
        WeightsError: no model can be constructed.
    """
    try:
        return empty_model(config)
    except MiniMindError:
        raise
    except Exception as error:
        # Sizes that do not divide, are negative or do not fit in memory raise different errors in each architecture.
        raise WeightsError(
            f"{origin}: its configuration does not make a model ({type(error).__name__}: {error})"
        ) from error


def _converted(folder: Path, file: TensorFile) -> dict[str, Tensor]:
    """The tensors of a folder under the model's names, converted by transformers.

    transformers cannot convert single tensors, so each calling rank holds the whole model in memory.

    Raises:
        WeightsError: tensors are missing, unexpected or have wrong shapes. transformers only logs this, and fills
            missing tensors with random numbers.
    """
    try:
        # Not "auto": that believes config.json, and rounds float32 weights if it says bfloat16.
        model, info = AutoModelForCausalLM.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, dtype=file.widest(), output_loading_info=True
        )
    except Exception as error:
        # transformers raises many types for weights that do not match the configuration.
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
    """All names and tensors of a source, one tensor in memory at a time."""
    for name in source.shapes():
        yield name, source.read(name)
