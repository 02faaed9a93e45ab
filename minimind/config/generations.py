"""Defaults that follow the model: those of MiniMind's generations, and those of other models.

--generation           -> with_generation_sizes -> sizes of fresh weights
generation of weights  -> model_defaults ┬-> with_model_defaults, objective/choice.py -> the other settings
checkpoint's manifest  -> defaults_of_run┘
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from minimind.config.settings import CHECKPOINT, Job, Settings


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelDefaults:
    """Values of settings that the user did not give.

    Attributes:
        origin: what they belong to, as it is printed with each setting.
        objective: option of losses -> value, for the losses in which the option follows the model. `NAME.option` is
            the option of one loss.
        data: flag of the data -> value.
        sizes: flag of the model -> value, for fresh weights.
        jobs: name of a job -> flag -> value, where only that job has the default.
    """

    origin: str
    objective: Mapping[str, Any]
    data: Mapping[str, Any]
    sizes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    jobs: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)


# MiniMind's scripts of the time of each generation.
_GENERATIONS: Mapping[int, ModelDefaults] = {
    2: ModelDefaults(
        origin="generation 2",
        objective={"average_log_prob": True, "beta": 0.1},
        data={"empty_think_ratio": 1.0},
        sizes={"hidden_size": 512},
        jobs={"sft": {"learning_rate": 1e-6, "max_seq_len": 340}},
    ),
    3: ModelDefaults(
        origin="generation 3",
        objective={"average_log_prob": False, "beta": 0.15},
        data={"empty_think_ratio": 0.2},
        sizes={"hidden_size": 768},
    ),
}
# As in the paper and in TRL.
_HUGGING_FACE = ModelDefaults(
    origin="Hugging Face model",
    objective={"average_log_prob": False, "beta": 0.1},
    data={"empty_think_ratio": 1.0},
)


def model_defaults(generation: int | None) -> ModelDefaults:
    """The defaults of MiniMind models of a generation; of a model of another family if it is None."""
    return _HUGGING_FACE if generation is None else _GENERATIONS[generation]


def defaults_of_run(identity: Mapping[str, Any]) -> ModelDefaults:
    """The defaults of a run that resumes: the values that it has had so far.

    Args:
        identity: of the run, as its checkpoint's manifest has it.
    """
    options = {name: value for name, value in identity.items() if name.split(".")[-1] in _HUGGING_FACE.objective}
    # Earlier versions did not write this ratio, and their default was 1 for all models.
    data = {"empty_think_ratio": identity.get("empty_think_ratio", 1.0)}
    return ModelDefaults(origin=CHECKPOINT, objective=options, data=data)


def with_generation_sizes(settings: Settings[Job]) -> Settings[Job]:
    """Settings with the sizes of the generation that --generation names; weights replace them by their own."""
    generation = settings.values.get("generation")
    if generation is None:
        return settings
    defaults = model_defaults(generation)
    return settings.with_defaults(defaults.sizes, defaults.origin)


def with_model_defaults(settings: Settings[Job], defaults: ModelDefaults) -> Settings[Job]:
    """Settings with a model's defaults, except for those of the objective; a job may lack some of the flags."""
    known = settings.origins
    values = {name: value for name, value in defaults.data.items() if name in known}
    return settings.with_defaults({**values, **defaults.jobs.get(settings.config.name, {})}, defaults.origin)
