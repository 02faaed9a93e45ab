"""The kinds of jobs: what setup must know of each, from its flags to the object that computes its steps.

    configuration -> kind_of -> JobKind: choose (flags -> objective), items (what rows become), make (objective -> Job)

To add a job, write its configuration (config/jobs.py), its job beside dpo.py, and an entry of `KINDS`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from minimind.config import DPOConfig, JobConfig, ModelDefaults, PretrainConfig, Settings, SFTConfig
from minimind.data.shapes import Items
from minimind.engine.reference import Reference
from minimind.errors import ConfigError
from minimind.objective.choice import choose_objective
from minimind.objective.interface import AnyObjective
from minimind.objective.losses import Need, Objective, build_objective
from minimind.objective.token_mean import TokenMean
from minimind.ranks.world import World
from minimind.training.jobs.answer_metrics import LENGTH_METRICS, TOKEN_METRICS
from minimind.training.jobs.dpo import DPOJob
from minimind.training.jobs.job import Job
from minimind.training.jobs.tokens import DERIVED_METRICS, TokenJob
from minimind.training.listeners.batch_statistics import BatchStatistics


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parts:
    """What a job is made of besides its objective.

    Attributes:
        reference: of the table that it is for; None if the objective needs none.
        statistics: running means over global batches; None if it needs none.
    """

    world: World
    reference: Reference | None = None
    statistics: BatchStatistics | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class JobKind:
    """A kind of training, as setup sees it.

    Attributes:
        choose: settings, defaults of the model (None if it is not known) -> settings with what the objective implies,
            and the objective. Raises ConfigError if flags of the objective are wrong.
        items: objective, or None if its flags are wrong -> what rows become.
        make: objective, parts -> the job of one table.
        metrics: objective -> names of the metrics of its job beside the losses.
        default_options: name of an objective -> its options where no flag gives them. A checkpoint that was written
            before an option existed has its default.
        has_demo: without --data_path the bundled demo runs.
    """

    choose: Callable[[Any, ModelDefaults | None], tuple[Settings, AnyObjective]]
    items: Callable[[Any], Items]
    make: Callable[[Any, Parts], Job]
    metrics: Callable[[Any], tuple[str, ...]]
    default_options: Callable[[str], Mapping[str, Any]]
    has_demo: bool = False


def kind_of(config: JobConfig) -> JobKind:
    """The kind that a configuration is for."""
    return KINDS[config.name]


def metric_names(config: JobConfig, objective: AnyObjective) -> tuple[str, ...]:
    """Names of the metrics that a job of this objective logs, without rates and memory."""
    return ("loss", f"{config.name}_loss", "aux_loss", *kind_of(config).metrics(objective))


def _choose_pair_loss(
    settings: Settings[DPOConfig], model: ModelDefaults | None
) -> tuple[Settings[DPOConfig], Objective]:
    settings, objective = choose_objective(settings, model)
    return with_labelled_turns(settings, objective), objective


def with_labelled_turns(settings: Settings[DPOConfig], objective: Objective) -> Settings[DPOConfig]:
    """Settings under which only the answer counts that has the label, for losses of labelled answers.

    Raises:
        ConfigError: a flag says that other turns count too.
    """
    if Need.LABELS not in objective.needs:
        return settings
    if settings.explicit("last_turn_only") and not settings.config.data.last_turn_only:
        raise ConfigError(
            f"--last_turn_only 0: --loss {objective.name} counts the labelled answer alone, the last turn"
        )
    return settings.with_values({"last_turn_only": True}, f"--loss {objective.name}")


def _items_of_pair_loss(objective: Objective | None) -> Items:
    if objective is None or Need.LABELS not in objective.needs:
        return Items.PAIRS
    return Items.MISMATCHED if Need.MISMATCHED in objective.needs else Items.ANSWERS


def _pair_job(objective: Objective, parts: Parts) -> Job:
    return DPOJob(objective=objective, reference=parts.reference, statistics=parts.statistics, world=parts.world)


def _choose_token_mean(settings: Settings[Any], model: ModelDefaults | None) -> tuple[Settings[Any], TokenMean]:
    objective = TokenMean(mean=settings.config.objective.loss_mean)
    if objective.depends_on_split and settings.config.optimisation.micro_batch_tokens:
        raise ConfigError(
            "--loss_mean micro_batch: the loss would depend on how --micro_batch_tokens splits a step; drop one of them"
        )
    return settings, objective


def _token_kind(config: type[JobConfig], items: Items) -> JobKind:
    def make(objective: TokenMean, parts: Parts) -> Job:
        return TokenJob(name=config.name, examples=config.items, objective=objective, world=parts.world)

    return JobKind(
        choose=_choose_token_mean,
        items=lambda objective: items,
        make=make,
        metrics=lambda objective: (*DERIVED_METRICS, *TokenJob.token_metrics),
        default_options=lambda loss: TokenMean().options(),
    )


# By the name of the job's configuration.
KINDS: Mapping[str, JobKind] = {
    DPOConfig.name: JobKind(
        choose=_choose_pair_loss,
        items=_items_of_pair_loss,
        make=_pair_job,
        metrics=lambda objective: (*objective.metrics, *LENGTH_METRICS, *TOKEN_METRICS),
        default_options=lambda loss: build_objective(loss).options(),
        has_demo=True,
    ),
    SFTConfig.name: _token_kind(SFTConfig, Items.CONVERSATIONS),
    PretrainConfig.name: _token_kind(PretrainConfig, Items.TEXTS),
}
