"""The configuration of each job: a composition of sections.

A job that needs other sections (an SFT job has no reference) is another dataclass beside `DPOConfig`; the command line
and `Settings` are derived from the class.
"""

from __future__ import annotations

import dataclasses
from typing import Protocol

from minimind.config.data import DataConfig
from minimind.config.engine import EngineConfig
from minimind.config.model import ModelConfig
from minimind.config.objective import ObjectiveConfig
from minimind.config.optimisation import OptimisationConfig
from minimind.config.run import RunConfig


class JobConfig(Protocol):
    """The sections that the configuration of every job has."""

    @property
    def data(self) -> DataConfig: ...

    @property
    def model(self) -> ModelConfig: ...

    @property
    def optimisation(self) -> OptimisationConfig: ...

    @property
    def engine(self) -> EngineConfig: ...

    @property
    def run(self) -> RunConfig: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class DPOConfig:
    """Configuration of a DPO run."""

    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    objective: ObjectiveConfig = dataclasses.field(default_factory=ObjectiveConfig)
    optimisation: OptimisationConfig = dataclasses.field(default_factory=OptimisationConfig)
    engine: EngineConfig = dataclasses.field(default_factory=EngineConfig)
    run: RunConfig = dataclasses.field(default_factory=RunConfig)
