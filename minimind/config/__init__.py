"""The configuration of a run: every setting with its type, flag, default and range in one place.

    argv -> command_line.py -> settings.py (values and their origins) -> the rest of the program
            ^ generated from jobs.py (DPOConfig), a composition of the sections
              data.py, model.py, objective.py, optimisation.py, engine.py, run.py, samples.py

MiniMind's flags keep MiniMind's names, meanings and defaults.
"""

from __future__ import annotations

from minimind.config.adapters import AdapterConfig
from minimind.config.command_line import build_parser, parse_settings
from minimind.config.data import DataConfig
from minimind.config.engine import EngineConfig
from minimind.config.fields import Flag, fields_of, flag, flat_values, replace_values
from minimind.config.generations import ModelDefaults, model_defaults
from minimind.config.jobs import DPOConfig, JobConfig, PretrainConfig, SFTConfig
from minimind.config.model import ModelConfig
from minimind.config.objective import ObjectiveConfig
from minimind.config.optimisation import OptimisationConfig
from minimind.config.run import RunConfig
from minimind.config.samples import SampleConfig
from minimind.config.settings import (
    BAD_ROWS_KEPT,
    CHECKPOINT,
    DEEPSPEED_FILE,
    DEFAULT,
    DEMO,
    FLAG,
    MEASURED,
    STREAMING,
    WEIGHTS,
    Settings,
)

__all__ = [
    "BAD_ROWS_KEPT",
    "CHECKPOINT",
    "DEEPSPEED_FILE",
    "DEFAULT",
    "DEMO",
    "FLAG",
    "MEASURED",
    "STREAMING",
    "WEIGHTS",
    "AdapterConfig",
    "DPOConfig",
    "DataConfig",
    "EngineConfig",
    "Flag",
    "JobConfig",
    "ModelConfig",
    "ModelDefaults",
    "ObjectiveConfig",
    "OptimisationConfig",
    "PretrainConfig",
    "RunConfig",
    "SFTConfig",
    "SampleConfig",
    "Settings",
    "build_parser",
    "fields_of",
    "flag",
    "flat_values",
    "model_defaults",
    "parse_settings",
    "replace_values",
]
