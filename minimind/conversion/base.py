"""The start weights of a run, with which its weights are compared.

run.json, --base -> open_base -> Base: their tensors where they can be read, and their hash
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from minimind.conversion.tensors import as_minimind
from minimind.conversion.trained import Trained, open_start
from minimind.errors import MiniMindError
from minimind.model.configuration import MiniMindConfig
from minimind.weights.inferred_config import NOT_IN_PTH
from minimind.weights.sources import RandomSource, WeightSource, open_weights

_RANDOM = re.compile(r"random weights \(seed (\d+)\)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Base:
    """Start weights.

    Attributes:
        weights: their tensors, under MiniMind's names; None if they cannot be read.
        origin: what the run, or the user, calls them; None if nothing is known.
        fingerprint: their hash (`WeightSource.fingerprint`); None if nothing is known.
        missing: why there are no tensors; empty if there are.
        other: the hash of the run's own start weights, if these are others; else None.
    """

    weights: WeightSource | None
    origin: str | None
    fingerprint: str | None
    missing: str = ""
    other: str | None = None


def open_base(trained: Trained, given: Path | None, flags: Mapping[str, Any]) -> Base:
    """The start weights of trained weights.

    Args:
        given: the user's path of them; None: those that the run names, or that an adapter was merged with.
        flags: model flags that the user gave.

    Raises:
        WeightsError: those that the user names cannot be read.
    """
    given = given or trained.base
    origin, fingerprint = trained.record.get("weights"), trained.identity.get("start weights")
    if given is not None:
        weights = open_start(given, flags)
        found = weights.fingerprint()
        other = fingerprint if fingerprint not in (None, found) else None
        return Base(weights=as_minimind(weights), origin=str(given), fingerprint=found, other=other)
    if origin is None:
        what = (
            "the folder of its run is not known"
            if trained.kind == "checkpoint"
            else "no run is known to have written it"
        )
        return Base(
            weights=None, origin=None, fingerprint=fingerprint, missing=f"{what}; --base names the start weights"
        )
    try:
        weights = _of_run(trained, origin)
        found = weights.fingerprint()
    except MiniMindError as error:
        return Base(weights=None, origin=origin, fingerprint=fingerprint, missing=f"{error}; --base names them")
    if found != fingerprint:
        changed = f"{origin} has changed since the run (hash {found}, was {fingerprint})"
        return Base(weights=None, origin=origin, fingerprint=fingerprint, missing=f"{changed}; --base names a copy")
    return Base(weights=as_minimind(weights), origin=origin, fingerprint=fingerprint)


def _of_run(trained: Trained, origin: str) -> WeightSource:
    config = trained.weights.config
    if (match := _RANDOM.fullmatch(origin)) is not None and isinstance(config, MiniMindConfig):
        return RandomSource(config, int(match[1]))
    return open_weights(Path(origin), {name: value for name in NOT_IN_PTH if (value := trained.setting(name))})
