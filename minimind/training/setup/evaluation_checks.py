"""Checks of the flags that are about evaluations: names of sets, --eval_interval, --save_best, --early_stop.

Draft -> every function of EVALUATION_CHECKS -> errors
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from minimind.config import JobConfig
from minimind.data.sets import named_words
from minimind.errors import ConfigError, MiniMindError
from minimind.objective.interface import AnyObjective
from minimind.training.best import parse_early_stop, parse_save_best
from minimind.training.events import prefix_of
from minimind.training.jobs.kinds import metric_names
from minimind.training.setup.draft import Check, Draft


def evaluated_metrics(config: JobConfig, objective: AnyObjective) -> Mapping[str, str]:
    """Metric that the evaluations of a run log -> its name without the prefix and the name of the set."""
    sets = named_words(config.data.eval_data_path) or ("",)
    names = metric_names(config, objective)
    return {f"{prefix_of(one)}{name}": name for one in sets for name in names}


def sets_have_names_of_their_own(draft: Draft) -> Iterator[MiniMindError]:
    """No set of held-out data has a name that would make its metrics look like others."""
    if draft.objective is None:
        return
    config = draft.settings.config
    taken = {metric.partition("/")[0] for metric in metric_names(config, draft.objective)}
    for name in named_words(config.data.eval_data_path):
        if name in taken:
            yield ConfigError(
                f"--eval_data_path {name}=...: {prefix_of(name)}... are names of metrics; give the set another name"
            )


def evaluations_have_data(draft: Draft) -> Iterator[MiniMindError]:
    """Flags about evaluations are not given without held-out data."""
    settings, config = draft.settings, draft.settings.config
    given = [name for name in ("eval_interval", "save_best", "early_stop") if settings.explicit(name)]
    if given and not config.data.eval_data_path:
        yield ConfigError(f"--{given[0]} needs held-out {config.items}: --eval_data_path")


def best_can_be_found(draft: Draft) -> Iterator[MiniMindError]:
    """--save_best names a metric of several evaluations, and --early_stop has it to watch."""
    run, objective = draft.settings.config.run, draft.objective
    if run.early_stop and not run.save_best:
        yield ConfigError("--early_stop needs --save_best, whose metric it watches")
    for flag, value in (("save_best", run.save_best), ("early_stop", run.early_stop)):
        if value and draft.settings.config.data.eval_data_path and not run.eval_interval:
            yield ConfigError(f"--{flag} compares evaluations during training: give --eval_interval")
    try:
        if run.early_stop:
            parse_early_stop(run.early_stop)
        if run.save_best and objective is not None:
            parse_save_best(run.save_best, evaluated_metrics(draft.settings.config, objective))
    except ConfigError as error:
        yield error


EVALUATION_CHECKS: Sequence[Check] = (evaluations_have_data, sets_have_names_of_their_own, best_can_be_found)
