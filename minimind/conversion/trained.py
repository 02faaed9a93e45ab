"""Opens trained weights, whatever form they have: a run, a checkpoint, an adapter, a `.pth` or a Hugging Face folder.

    path -> open_trained -> Trained: weights, and what is known of the run that wrote them

A run is read from its newest checkpoint if it has one, because that has the float32 weights; its folder of weights is
rounded to the run's dtype.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig

from minimind.checkpoints.find import complete_checkpoints, resume_candidates
from minimind.checkpoints.manifest import MANIFEST
from minimind.conversion.checkpoint import CheckpointSource, checkpoint_adapter, verified_manifest
from minimind.conversion.merged import MergedSource, adapter_in_run, is_adapter, named_base
from minimind.errors import ConfigError, WeightsError
from minimind.weights.adapter_files import open_adapter
from minimind.weights.inferred_config import NOT_IN_PTH
from minimind.weights.run_folder import exported_folder
from minimind.weights.sources import WeightSource, open_weights

_RUN, _CHECKPOINTS = "run.json", "checkpoints"
# What an export leaves beside the weights, and how it calls MiniMind's own file.
EXPORT, PTH = "export.json", "pth"
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
        return _part(_part(self.record, "settings"), name).get("value")


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
    trained = _open(path, given, base, on_progress) if adapter is None else _open_adapter(adapter, given, base)
    check_flags(trained.weights.config, given, trained.weights.origin)
    return trained


def open_start(path: Path, given: Mapping[str, Any]) -> WeightSource:
    """Start weights in any form, as training reads them: of a run its folder of weights, not its checkpoint.

    Raises:
        ConfigError, WeightsError, CheckpointError: see `open_trained`.
    """
    if path.is_dir() and (path / _RUN).is_file():
        # Without a folder of weights the run's own rules apply.
        with contextlib.suppress(WeightsError):
            path = exported_folder(path)
    return open_trained(path, given).weights


def _adapter_of(path: Path) -> Path | None:
    """The adapter that a path is, or that a run with adapters and without checkpoints has written; None for others."""
    if is_adapter(path):
        return path
    if not path.is_dir() or not (path / _RUN).is_file() or complete_checkpoints(path / _CHECKPOINTS):
        return None
    return adapter_in_run(path) if _part(_read_json(path / _RUN), "identity").get("adapters") else None


def _open_adapter(path: Path, given: Mapping[str, Any], base: Path | None) -> Trained:
    run = path.resolve().parent
    record = _read_json(run / _RUN) if (run / _RUN).is_file() else {}
    # A folder in that of a run without adapters is not what the run has written.
    record = record if _part(record, "identity").get("adapters") else {}
    identity = _part(record, "identity")
    named = base or next((Path(name) for name in (named_base(path), record.get("weights")) if name), None)
    start = _base_of(path, named, identity, given)
    return Trained(
        weights=MergedSource(open_adapter(path, start, dropout=0.0), start),
        kind="adapter",
        run=run if record else None,
        record=record,
        identity=identity,
        tokenizer=_tokenizer_of(run, record, start.tokenizer_path),
        base=named,
    )


def _base_of(adapter: Path, base: Path | None, identity: Mapping[str, Any], given: Mapping[str, Any]) -> WeightSource:
    """The weights that an adapter is for.

    Raises:
        WeightsError: they are not there, or are not those that it was trained on.
    """
    if base is None or not base.exists():
        named = "names no base" if base is None else f"is for {base}, which is not there"
        raise WeightsError(f"{adapter}: an adapter that {named}; give the weights that it is for with --base")
    start = open_start(base, given)
    if (expected := identity.get("start weights")) not in (None, start.fingerprint()):
        raise WeightsError(
            f"{adapter}: was trained on weights with the hash {expected}; {base} has another; see --base"
        )
    return start


def _open(path: Path, given: Mapping[str, Any], base: Path | None, on_progress: Callable[[], object]) -> Trained:
    if path.is_file():
        sizes = {name: value for name, value in given.items() if name in NOT_IN_PTH and value}
        return Trained(weights=open_weights(path, sizes), kind="pth")
    if (path / MANIFEST).is_file():
        return _open_checkpoint(path, given, base, on_progress)
    for folder in (path, path / _CHECKPOINTS) if (path / _RUN).is_file() else (path,):
        if complete_checkpoints(folder):
            return _open_checkpoint(folder / resume_candidates(folder)[0], given, base, on_progress)
    weights = open_weights(path, {})
    # A .pth that was exported into a folder has left its own record there.
    if (path / EXPORT).is_file() and not (path / _RUN).is_file() and _read_json(path / EXPORT).get("to") != PTH:
        return _open_export(path, weights)
    record = _read_json(path / _RUN) if (path / _RUN).is_file() else {}
    return Trained(
        weights=weights,
        kind="folder",
        run=path if record else None,
        record=record,
        identity=_part(record, "identity"),
        tokenizer=weights.tokenizer_path,
    )


def _open_export(path: Path, weights: WeightSource) -> Trained:
    """Weights that were exported before: the run is the one that they came from."""
    values = _read_json(path / EXPORT)
    base, run = _part(values, "base"), _part(values, "run")
    return Trained(
        weights=weights,
        kind="folder",
        run=Path(run["path"]) if run.get("path") else None,
        record={"weights": base.get("path"), "versions": _part(run, "versions")},
        identity={"start weights": base.get("hash"), "total_steps": run.get("total_steps"), **_part(run, "job")},
        step=run.get("step"),
        tokenizer=weights.tokenizer_path,
    )


def _open_checkpoint(
    path: Path, given: Mapping[str, Any], base: Path | None, on_progress: Callable[[], object]
) -> Trained:
    manifest = verified_manifest(path, on_progress)
    # save_dir/checkpoints/step00000100, unless the folder was copied elsewhere.
    run = path.resolve().parent.parent
    record = _read_json(run / _RUN) if (run / _RUN).is_file() and path.resolve().parent.name == _CHECKPOINTS else {}
    named = None
    if manifest.identity.get("adapters"):
        named = base or (Path(record["weights"]) if record.get("weights") else None)
        start = _base_of(path, named, manifest.identity, given)
        weights: WeightSource = MergedSource(checkpoint_adapter(path, manifest, start), start)
    else:
        weights = CheckpointSource(path, manifest)
    return Trained(
        weights=weights,
        kind="checkpoint",
        run=run if record else None,
        record=record,
        identity=manifest.identity,
        step=manifest.step,
        tokenizer=_tokenizer_of(run, record, weights.tokenizer_path),
        base=named,
    )


def _part(values: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """An object in a JSON object; empty if there is none."""
    found = values.get(name)
    return found if isinstance(found, dict) else {}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise ValueError("not an object")
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError(f"{path}: cannot be read ({error})") from error
    return values


def _tokenizer_of(run: Path, record: Mapping[str, Any], base: Path | None) -> Path | None:
    """The tokenizer of weights: in the folder of weights of their run, else the one that it was given, else the base's.

    Args:
        record: the run's `run.json`; empty if the run is unknown.
        base: tokenizer of the weights that an adapter is for.
    """
    if not record:
        return base
    try:
        folder = exported_folder(run)
    except WeightsError:
        # A run that was stopped has checkpoints and no weights yet; one with adapters has no such folder.
        folder = run
    if any(folder.glob("tokenizer*")):
        return folder
    settings = _part(record, "settings")
    if _part(settings, "chat_template").get("value"):
        # No folder has the tokenizer with the template that the run trained with.
        return None
    given = _part(settings, "tokenizer_path").get("value")
    return (Path(given) if Path(given).is_dir() else None) if given else base


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
