"""The configuration of each job: a dataclass whose fields are sections.

A job with other sections gets another dataclass beside `DPOConfig`. The command line and `Settings` are derived from
the dataclass, so they need no change.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import ClassVar, Protocol

from minimind.config.adapters import AdapterConfig
from minimind.config.data import DataConfig
from minimind.config.engine import EngineConfig
from minimind.config.model import ModelConfig
from minimind.config.objective import ObjectiveConfig
from minimind.config.optimisation import OptimisationConfig
from minimind.config.pretrain import (
    PretrainDataConfig,
    PretrainModelConfig,
    PretrainOptimisationConfig,
    PretrainRunConfig,
)
from minimind.config.rows import RowAdapterConfig, RowEngineConfig, TokenLossConfig
from minimind.config.run import RunConfig
from minimind.config.samples import SampleConfig
from minimind.config.sft import SFTDataConfig, SFTModelConfig, SFTOptimisationConfig, SFTRunConfig


class JobConfig(Protocol):
    """What the configuration of every job has: its launch script, and the sections that all jobs share.

    Attributes:
        name: short name, e.g. dpo.
        script: the launch script, relative to the repository.
        description: the first line of `--help`.
        items: what is trained on, for messages.
        rows: of an item: a pair has two.
    """

    name: ClassVar[str]
    script: ClassVar[str]
    description: ClassVar[str]
    items: ClassVar[str]
    rows: ClassVar[int]

    @property
    def data(self) -> DataConfig: ...

    @property
    def model(self) -> ModelConfig: ...

    @property
    def adapters(self) -> AdapterConfig: ...

    @property
    def optimisation(self) -> OptimisationConfig: ...

    @property
    def engine(self) -> EngineConfig: ...

    @property
    def run(self) -> RunConfig: ...

    @property
    def samples(self) -> SampleConfig: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class DPOConfig:
    """Configuration of a DPO run."""

    name: ClassVar[str] = "dpo"
    script: ClassVar[str] = "launch/train_dpo.py"
    description: ClassVar[str] = "Direct Preference Optimization on DeepSpeed."
    items: ClassVar[str] = "pairs"
    rows: ClassVar[int] = 2

    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    adapters: AdapterConfig = dataclasses.field(default_factory=AdapterConfig)
    objective: ObjectiveConfig = dataclasses.field(default_factory=ObjectiveConfig)
    optimisation: OptimisationConfig = dataclasses.field(default_factory=OptimisationConfig)
    engine: EngineConfig = dataclasses.field(default_factory=EngineConfig)
    run: RunConfig = dataclasses.field(default_factory=RunConfig)
    samples: SampleConfig = dataclasses.field(default_factory=SampleConfig)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SFTConfig:
    """Configuration of a run of supervised fine-tuning."""

    name: ClassVar[str] = "sft"
    script: ClassVar[str] = "launch/train_sft.py"
    description: ClassVar[str] = "Supervised fine-tuning on DeepSpeed."
    items: ClassVar[str] = "conversations"
    rows: ClassVar[int] = 1

    data: SFTDataConfig = dataclasses.field(default_factory=SFTDataConfig)
    model: SFTModelConfig = dataclasses.field(default_factory=SFTModelConfig)
    adapters: RowAdapterConfig = dataclasses.field(default_factory=RowAdapterConfig)
    objective: TokenLossConfig = dataclasses.field(default_factory=TokenLossConfig)
    optimisation: SFTOptimisationConfig = dataclasses.field(default_factory=SFTOptimisationConfig)
    engine: RowEngineConfig = dataclasses.field(default_factory=RowEngineConfig)
    run: SFTRunConfig = dataclasses.field(default_factory=SFTRunConfig)
    samples: SampleConfig = dataclasses.field(default_factory=SampleConfig)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """Configuration of a pretraining run."""

    name: ClassVar[str] = "pretrain"
    script: ClassVar[str] = "launch/pretrain.py"
    description: ClassVar[str] = "Pretraining on DeepSpeed."
    items: ClassVar[str] = "texts"
    rows: ClassVar[int] = 1

    data: PretrainDataConfig = dataclasses.field(default_factory=PretrainDataConfig)
    model: PretrainModelConfig = dataclasses.field(default_factory=PretrainModelConfig)
    adapters: RowAdapterConfig = dataclasses.field(default_factory=RowAdapterConfig)
    objective: TokenLossConfig = dataclasses.field(default_factory=TokenLossConfig)
    optimisation: PretrainOptimisationConfig = dataclasses.field(default_factory=PretrainOptimisationConfig)
    engine: RowEngineConfig = dataclasses.field(default_factory=RowEngineConfig)
    run: PretrainRunConfig = dataclasses.field(default_factory=PretrainRunConfig)
    samples: SampleConfig = dataclasses.field(default_factory=SampleConfig)


# Configuration of each job, by its name, in the order in which a model passes through them.
JOBS: Mapping[str, type[JobConfig]] = {job.name: job for job in (PretrainConfig, SFTConfig, DPOConfig)}
