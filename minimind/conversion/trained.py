"""Opens trained weights, whatever form they have: a run, a checkpoint, an adapter, a `.pth` or a Hugging Face folder.

    path -> open_trained -> Trained: weights, and what is known of the run that wrote them

A run is read from its newest checkpoint if it has one, because that has the float32 weights; its folder of weights is
rounded to the run's dtype.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig

from minimind.checkpoints.find import complete_checkpoints, resume_candidates
from minimind.checkpoints.manifest import MANIFEST
from minimind.conversion.checkpoint import CheckpointSource
from minimind.conversion.merged import MergedSource, adapter_in_run, is_adapter, named_base
from minimind.errors import ConfigError, WeightsError
from minimind.weights.inferred_config import NOT_IN_PTH
from minimind.weights.run_folder import exported_folder
from minimind.weights.sources import WeightSource, open_weights

_RUN, _CHECKPOINTS = "run.json", "checkpoints"
# What an export leaves beside the weights.
EXPORT = "export.json"
# The one model setting that weights do not fix: YaRN can be turned on for any MiniMind model.
ROPE_SCALING = "inference_rope_scaling"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trained:
    """Trained weights, and where they come from.

    Attributes:
        weights: the weights.
        kind: "checkpoint", "folder", "pth" or "adapter".
        run: the folder of the run that wrote them; None: unknown.
        record: the run's `run.json`; empty if the run is unknown.
        identity: what the checkpoint's manifest, or `run.json`, says about the run.
        step: the global step after which they were written; None: unknown.
        tokenizer: the folder of their tokenizer; None: unknown.
        base: the weights that an adapter was merged with; None for others.
    """

    weights: WeightSource
    kind: str
    run: Path | None = None
    record: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    identity: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    step: int | None = None
    tokenizer: Path | None = None
    base: Path | None = None

    def setting(self, name: str) -> Any:
        """The value of a flag of the run; None if it is unknown."""
        return self.record.get("settings", {}).get(name, {}).get("value")


def open_trained(
    path: Path,
    given: Mapping[str, Any],
    base: Path | None = None,
    on_progress: Callable[[], object] = lambda: None,
) -> Trained:
    """Open weights in any form.

    Args:
        path: a run's folder, a checkpoint, a folder of checkpoints, a `.pth`, a Hugging Face folder or an adapter.
        given: model flags that the user gave: name -> value.
        base: weights that an adapter is for; None: those that it, or its run, names.
        on_progress: called while a checkpoint is verified.

    Raises:
        ConfigError: a flag contradicts the weights.
        WeightsError, CheckpointError: the weights are missing, damaged or none.
    """
    if not path.exists():
        raise WeightsError(f"{path}: no such file or folder; give a run, a checkpoint, a .pth or a Hugging Face folder")
    adapter = _adapter_of(path)
    trained = _open(path, given, on_progress) if adapter is None else _open_adapter(adapter, given, base)
    check_flags(trained.weights.config, given, trained.weights.origin)
    return trained


def _adapter_of(path: Path) -> Path | None:
    """The adapter that a path is, or that a run with adapters has written; None for whole weights."""
    if is_adapter(path):
        return path
    if path.is_dir() and (path / _RUN).is_file() and _read_json(path / _RUN).get("identity", {}).get("adapters"):
        return adapter_in_run(path)
    return None


def _open_adapter(path: Path, given: Mapping[str, Any], base: Path | None) -> Trained:
    run = path.resolve().parent
    record = _read_json(run / _RUN) if (run / _RUN).is_file() else {}
    found = base or next((Path(name) for name in (named_base(path), record.get("weights")) if name), None)
    if found is None or not found.exists():
        named = "names no base" if found is None else f"is for {found}, which is not there"
        raise WeightsError(f"{path}: an adapter that {named}; give the weights that it is for with --base")
    start = open_trained(found, given).weights
    identity = record.get("identity", {})
    if (expected := identity.get("start weights")) not in (None, start.fingerprint()):
        raise WeightsError(f"{path}: was trained on weights with the hash {expected}; {found} has another; see --base")
    weights = MergedSource(path, start)
    tokenizer = weights.tokenizer_path or (_tokenizer_of(run, record) if record else None)
    return Trained(
        weights=weights,
        kind="adapter",
        run=run if record else None,
        record=record,
        identity=identity,
        tokenizer=tokenizer,
        base=found,
    )


def _open(path: Path, given: Mapping[str, Any], on_progress: Callable[[], object]) -> Trained:
    if path.is_file():
        sizes = {name: value for name, value in given.items() if name in NOT_IN_PTH and value}
        return Trained(weights=open_weights(path, sizes), kind="pth")
    if (path / MANIFEST).is_file():
        return _open_checkpoint(path, on_progress)
    if complete_checkpoints(path):
        return _open_checkpoint(path / resume_candidates(path)[0], on_progress)
    if (path / _RUN).is_file() and complete_checkpoints(path / _CHECKPOINTS):
        return _open_checkpoint(path / _CHECKPOINTS / resume_candidates(path / _CHECKPOINTS)[0], on_progress)
    weights = open_weights(path, {})
    if (path / EXPORT).is_file():
        return _open_export(path, weights)
    record = _read_json(path / _RUN) if (path / _RUN).is_file() else {}
    return Trained(
        weights=weights,
        kind="folder",
        run=path if record else None,
        record=record,
        identity=record.get("identity", {}),
        tokenizer=weights.tokenizer_path,
    )


def _open_export(path: Path, weights: WeightSource) -> Trained:
    """Weights that were exported before: the run is the one that they came from."""
    values = _read_json(path / EXPORT)
    base, run = values.get("base", {}), values.get("run", {})
    return Trained(
        weights=weights,
        kind="folder",
        run=Path(run["path"]) if run.get("path") else None,
        record={"weights": base.get("path"), "versions": run.get("versions", {})},
        identity={"start weights": base.get("hash"), "total_steps": run.get("total_steps"), **run.get("job", {})},
        step=run.get("step"),
        tokenizer=weights.tokenizer_path,
    )


def _open_checkpoint(path: Path, on_progress: Callable[[], object]) -> Trained:
    weights = CheckpointSource(path, on_progress)
    # save_dir/checkpoints/step00000100, unless the folder was copied elsewhere.
    run = path.resolve().parent.parent
    record = _read_json(run / _RUN) if (run / _RUN).is_file() and path.resolve().parent.name == _CHECKPOINTS else {}
    return Trained(
        weights=weights,
        kind="checkpoint",
        run=run if record else None,
        record=record,
        identity=weights.manifest.identity,
        step=weights.manifest.step,
        tokenizer=_tokenizer_of(run, record) if record else None,
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise ValueError("not an object")
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError(f"{path}: cannot be read ({error})") from error
    return values


def _tokenizer_of(run: Path, record: Mapping[str, Any]) -> Path | None:
    """The tokenizer of a run: in its folder of weights, else the one that it was given."""
    try:
        folder = exported_folder(run)
    except WeightsError:
        # A run that was stopped has checkpoints and no weights yet.
        folder = run
    if any(folder.glob("tokenizer*")):
        return folder
    given = record.get("settings", {}).get("tokenizer_path", {}).get("value")
    return Path(given) if given and Path(given).is_dir() else None


def check_flags(config: PretrainedConfig, given: Mapping[str, Any], origin: str) -> None:
    """Compare model flags with weights that tell these values.

    Raises:
        ConfigError: they differ; the message names all of them.
    """
    text = config.get_text_config()
    rope = getattr(text, "rope_parameters", None) or {}
    problems = []
    for name, value in given.items():
        if name == ROPE_SCALING or value is None:
            continue
        found = getattr(text, name, rope.get(name))
        if found is None:
            problems.append(f"--{name} {_shown(value)}: {origin} is of type {config.model_type}, without this setting")
        elif found != value:
            problems.append(f"--{name} is {_shown(value)}, but {origin} has {_shown(found)}; omit the flag")
    if given.get(ROPE_SCALING) is False and getattr(text, ROPE_SCALING, False):
        problems.append(f"--{ROPE_SCALING} is 0, but {origin} has 1; omit the flag")
    if problems:
        raise ConfigError.from_problems(problems)


def _shown(value: Any) -> Any:
    return int(value) if isinstance(value, bool) else value
