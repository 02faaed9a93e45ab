"""Exported weights: MiniMind's `.pth` for its models, and a Hugging Face folder for every model.

Of a run with adapters: a folder in peft's format, MiniMind's `lora_*.pth` where MiniMind can load it, and with
--merge 1 the weights too. The weights of the best evaluation (--save_best) have the same forms, in a folder of their
own.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from minimind.diagnosis.rules.weights import MOVED
from minimind.durable import whole_folder
from minimind.engine.policy import Policy
from minimind.errors import WeightsError
from minimind.model.adapters import SQUARE, AdapterSpec, find_targets
from minimind.model.family import family_of
from minimind.ranks.collectives import from_main
from minimind.training.setup.prepare import Prepared
from minimind.training.setup.start_weights import adapter_name, weights_name
from minimind.weights.adapter_files import merged_state, save_adapter, save_minimind_adapter
from minimind.weights.construction import empty_model
from minimind.weights.io import save_huggingface, save_minimind
from minimind.weights.moved import shares_moved

# Folder of the best weights in a run's folder; their record in it.
BEST, BEST_RECORD = "best", "best.json"


def export_weights(prepared: Prepared, policy: Policy, on_progress: Callable[[], object]) -> dict[str, float]:
    """Write the policy's weights into the run's folder; all ranks must call.

    Returns:
        `moved/DTYPE` -> share of the weights that differ from the start weights in a written dtype, and in float32;
        empty for a run with adapters, whose weights do not change.

    Raises:
        WeightsError: on all ranks, if a file could not be written.
    """
    # A collective under ZeRO: every rank contributes its shards, rank 0 gets the tensors.
    state = policy.full_state()
    folder = Path(prepared.settings.config.run.save_dir)

    def write() -> dict[str, float]:
        _write(prepared, state, on_progress, folder)
        return {} if prepared.adapters is not None else _moved(prepared, state)

    return from_main(policy.world, write)


def _moved(prepared: Prepared, state: dict[str, Tensor]) -> dict[str, float]:
    config = prepared.settings.config
    # float32 tells what training changed, the others what of it the written file keeps.
    dtypes = ["float32", config.optimisation.dtype]
    if family_of(prepared.source.config).exports_pth:
        dtypes.append(config.run.save_dtype)
    return {f"{MOVED}{dtype}": share for dtype, share in shares_moved(state, prepared.source, dtypes).items()}


def export_best(
    prepared: Prepared, policy: Policy, on_progress: Callable[[], object], record: Mapping[str, object]
) -> None:
    """Replace the folder `best` in the run's folder by one with the policy's weights; all ranks must call.

    It is a run's folder too, with a copy of `run.json`, so that whatever reads a run reads it.

    Args:
        record: what made them the best, for `best.json`.

    Raises:
        WeightsError: on all ranks, if a file could not be written; the old folder stays.
    """
    # Before the folder is opened: under ZeRO all ranks take part, and only rank 0 writes.
    state = policy.full_state()
    run = Path(prepared.settings.config.run.save_dir)

    def write() -> None:
        try:
            # The old best weights stay until the new ones are whole: a kill between must not leave none.
            with whole_folder(run / BEST) as folder:
                _write(prepared, state, on_progress, folder)
                shutil.copyfile(run / "run.json", folder / "run.json")
                (folder / BEST_RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            raise WeightsError(f"{run / BEST}: cannot be written ({error})") from error

    from_main(policy.world, write)


def _write(prepared: Prepared, state: dict[str, Tensor], on_progress: Callable[[], object], folder: Path) -> None:
    config = prepared.settings.config
    name = weights_name(config)
    if prepared.adapters is not None:
        _write_adapter(prepared, prepared.adapters.spec, state, folder)
        on_progress()
        if not config.adapters.merge:
            return
        state = merged_state(prepared.source, prepared.adapters.spec, state)
    if family_of(prepared.source.config).exports_pth:
        save_minimind(state, folder / f"{name}.pth", getattr(torch, config.run.save_dtype))
        on_progress()
    # The folder keeps the run's dtype, so that training can start from it without another rounding.
    dtype = getattr(torch, config.optimisation.dtype)
    save_huggingface(prepared.source.config, state, folder / name, prepared.tokenizer, dtype)


def _write_adapter(prepared: Prepared, spec: AdapterSpec, state: dict[str, Tensor], folder: Path) -> None:
    config, source = prepared.settings.config, prepared.source
    path = folder / adapter_name(config)
    init = True if config.adapters.lora_init == "default" else config.adapters.lora_init
    save_adapter(state, spec, source, path, init)
    # MiniMind adds adapters to all square layers, and to no others.
    square = find_targets(empty_model(source.config), SQUARE)
    if family_of(source.config).exports_pth and not spec.dora and (spec.layers, spec.stacks) == square:
        dtype = getattr(torch, config.run.save_dtype)
        save_minimind_adapter(state, spec, path.with_name(f"{path.name}.pth"), dtype)
