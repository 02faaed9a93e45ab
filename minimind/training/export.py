"""Exported weights: MiniMind's `.pth` for its models, and a Hugging Face folder for every model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from minimind.engine.policy import Policy
from minimind.model.family import family_of
from minimind.ranks.collectives import from_main
from minimind.training.setup.prepare import Prepared
from minimind.training.setup.start_weights import weights_name
from minimind.weights.io import save_huggingface, save_minimind


def export_weights(prepared: Prepared, policy: Policy, on_progress: Callable[[], object]) -> None:
    """Write the policy's weights into the run's folder; all ranks must call.

    Raises:
        WeightsError: on all ranks, if a file could not be written.
    """
    # A collective under ZeRO: every rank contributes its shards, rank 0 gets the tensors.
    state = policy.full_state()
    from_main(policy.world, lambda: _write(prepared, state, on_progress))


def _write(prepared: Prepared, state: dict[str, Tensor], on_progress: Callable[[], object]) -> None:
    config = prepared.settings.config
    folder, name = Path(config.run.save_dir), weights_name(config)
    if family_of(prepared.source.config).exports_pth:
        save_minimind(state, folder / f"{name}.pth", getattr(torch, config.run.save_dtype))
        on_progress()
    # The folder keeps the run's dtype, so that training can start from it without another rounding.
    dtype = getattr(torch, config.optimisation.dtype)
    save_huggingface(prepared.source.config, state, folder / name, prepared.tokenizer, dtype)
