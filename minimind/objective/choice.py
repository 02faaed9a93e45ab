"""The objective that a run's settings choose, and the settings that follow from it.

Settings, ModelDefaults -> choose_objective -> Objective; Settings with the value of each option of the losses, and
without a reference if none is needed
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from minimind.config import DEFAULT, DPOConfig, ModelDefaults, Settings
from minimind.errors import ConfigError
from minimind.objective.losses import Need, Objective, build_objective
from minimind.objective.losses.build import options_of_model
from minimind.objective.reference_update import parse_reference_update

# Options of losses that are flags of their own.
OPTION_FLAGS = ("beta", "average_log_prob", "label_smoothing")
# Flags about a reference, which a loss that needs none refuses.
_REFERENCE_FLAGS = ("reference", "reference_config", "reference_weight", "reference_update")
# Value of --reference for a loss that needs none.
NO_REFERENCE = "none"


def choose_objective(
    settings: Settings[DPOConfig], model: ModelDefaults | None = None
) -> tuple[Settings[DPOConfig], Objective]:
    """The objective, and settings in which each of its options and the reference have the value that the run uses.

    Args:
        model: defaults of the model that is trained; None if it is not known.

    Raises:
        ConfigError: losses, weights or options are wrong, or contradict --reference.
    """
    chosen, values = settings.config.objective, settings.values
    given = {name: values[name] for name in OPTION_FLAGS if settings.origins[name] != DEFAULT}
    defaults = {} if model is None else model.objective
    objective = build_objective(chosen.loss, given, chosen.loss_options, defaults)
    _check_reference(settings, objective)
    origin = f"--loss {chosen.loss}" if settings.explicit("loss") else DEFAULT
    for name in OPTION_FLAGS:
        if name not in given:
            of_model = model if _is_of_model(objective, name, defaults) else None
            value = {name: _common_value(objective, name)}
            settings = settings.with_values(value, origin if of_model is None else of_model.origin)
    if Need.REFERENCE not in objective.needs:
        settings = settings.with_values({"reference": NO_REFERENCE}, origin)
    return settings, objective


def _is_of_model(objective: Objective, name: str, defaults: Mapping[str, Any]) -> bool:
    """Whether an option has the model's default in all losses that have it, and one has it."""
    losses = [part.loss for part in objective.parts if hasattr(part.loss, name)]
    found = [options_of_model(type(loss), defaults).get(name) == getattr(loss, name) for loss in losses]
    return bool(found) and all(found)


def _common_value(objective: Objective, name: str) -> float | bool | None:
    """Value of an option in all losses that have it; None if they differ or none has it."""
    found = {getattr(part.loss, name) for part in objective.parts if hasattr(part.loss, name)}
    return found.pop() if len(found) == 1 else None


def _check_reference(settings: Settings[DPOConfig], objective: Objective) -> None:
    engine, shown = settings.config.engine, f"--loss {objective.name}"
    if engine.reference_update:
        parse_reference_update(engine.reference_update)
    if Need.REFERENCE not in objective.needs:
        given = [f"--{name}" for name in _REFERENCE_FLAGS if settings.explicit(name)]
        if given and not (given == ["--reference"] and engine.reference == NO_REFERENCE):
            raise ConfigError(f"{shown} needs no reference; drop {' and '.join(given)}")
    elif engine.reference == NO_REFERENCE:
        raise ConfigError(f"--reference {NO_REFERENCE}: {shown} needs a reference; use live or cached")
    elif engine.reference == "cached" and engine.reference_update:
        raise ConfigError(
            "--reference_update moves the reference, and --reference cached keeps log-probs of the one at the start; "
            "use --reference live"
        )
    elif engine.reference == "cached":
        both = {Need.REFERENCE, Need.PER_TOKEN}
        names = [part.loss.name for part in objective.parts if both <= part.loss.needs]
        if names:
            raise ConfigError(
                f"--loss {names[0]} needs the reference's log-prob of each token, and --reference cached keeps sums "
                "over rows; use --reference live"
            )
