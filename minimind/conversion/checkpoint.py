"""The weights in a checkpoint: float32, whatever ZeRO stage and number of ranks wrote them.

step00000100/ -> verified_manifest: every file's size and hash -> CheckpointSource, of a run with adapters their values
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import AutoConfig, PretrainedConfig

from minimind.checkpoints.consolidated import SavedWeights
from minimind.checkpoints.manifest import Manifest, find_damage
from minimind.errors import CheckpointError
from minimind.model.adapters import TRAINED, AdapterSpec, adapted_layer, adapter_of
from minimind.weights.adapter_files import adaptable
from minimind.weights.adapters import SavedAdapter, adapter_shapes
from minimind.weights.construction import empty_model, tensor_shapes
from minimind.weights.sources import WeightSource

# How the identity in a manifest names the fields of the model's configuration.
_MODEL = "model."


class CheckpointSource(WeightSource):
    """The weights in an intact checkpoint.

    Args:
        folder: the checkpoint.
        manifest: its manifest.

    Raises:
        CheckpointError: it is not arranged as DeepSpeed writes checkpoints.
        WeightsError: its tensors are not those of its model.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.origin = str(folder)
        self.config = config_of(manifest.identity, folder)
        self._saved = SavedWeights(folder)
        model = empty_model(self.config)
        # A tied head is in the files a second time, under a name that only the whole state has.
        aliases = set(model.state_dict()) - set(tensor_shapes(model))
        self._shapes = {name: shape for name, shape in self._saved.shapes().items() if name not in aliases}
        self.check_fit(tensor_shapes(model))

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return self._shapes

    def read(self, name: str) -> Tensor:
        return self._saved.read(name)


def checkpoint_adapter(folder: Path, manifest: Manifest, base: WeightSource) -> SavedAdapter:
    """The trained adapters in an intact checkpoint, which has no other weights.

    Args:
        base: the weights that they are for.

    Raises:
        CheckpointError: it is not arranged as DeepSpeed writes checkpoints, or its adapters do not fit the base.
    """
    saved, known = SavedWeights(folder), manifest.identity["adapters"]
    shapes = {name: shape for name, shape in saved.shapes().items() if adapter_of(name) == TRAINED}
    adapted = {adapted_layer(name)[0] for name in shapes}
    linear, stacks = adaptable(base)
    try:
        spec = AdapterSpec(
            **{name: known[name] for name in ("rank", "alpha", "dora", "rslora")},
            layers=tuple(sorted(adapted & linear)),
            # All parts of a stack have the name of the layer that holds them.
            stacks=() if adapted <= linear else stacks,
        )
        fits = spec.targets == known["targets"] and adapter_shapes(base.config, spec) == shapes
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{folder}: its manifest does not describe its adapters ({error!r})") from error
    if not fits:
        raise CheckpointError(
            f"{folder}: its adapters do not fit {base.origin}; give the folder of the adapter that the run wrote"
        )
    return SavedAdapter(spec, str(folder), {name: saved.read(name) for name in shapes})


def config_of(identity: Mapping[str, Any], folder: Path) -> PretrainedConfig:
    """The model's configuration in a manifest's identity.

    Raises:
        CheckpointError: there is none, or it makes no model.
    """
    fields = {name.removeprefix(_MODEL): value for name, value in identity.items() if name.startswith(_MODEL)}
    try:
        return AutoConfig.for_model(fields.pop("model_type"), **fields)
    except Exception as error:
        # transformers raises many types for a configuration that it cannot use.
        raise CheckpointError(f"{folder}: its manifest has no usable configuration of the model ({error!r})") from error


def verified_manifest(folder: Path, on_progress: Callable[[], object] = lambda: None) -> Manifest:
    """The manifest of a checkpoint whose files are those that it lists.

    Args:
        on_progress: called while files are read.

    Raises:
        CheckpointError: it cannot be read, or files are damaged.
    """
    try:
        manifest = Manifest.read(folder)
    except CheckpointError as error:
        raise CheckpointError(f"{folder}: {error}") from error
    damage = (find_damage(folder / name, manifest.files[name], on_progress) for name in sorted(manifest.files))
    problems = [problem for problem in damage if problem is not None]
    if problems:
        raise CheckpointError(
            f"{folder}: is damaged: {'; '.join(problems)}; give an older checkpoint, or the folder of weights that the "
            "run wrote"
        )
    return manifest
