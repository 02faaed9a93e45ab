"""lm-eval behind one function: its tasks on a model that is in memory already.

model, tokenizer, --tasks -> data sets out of the local caches -> simple_evaluate -> task: metric -> value
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from minimind.errors import ConfigError, DataError
from minimind.evaluation.tasks import chosen_tasks, name_of

# Variables by which the libraries of Hugging Face stay off the net; read when they are imported.
_OFFLINE = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_EVALUATE_OFFLINE")
# Keys of a task's results that are no metrics.
_NO_METRICS = ("alias", "name", "sample_len")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluated:
    """Results of lm-eval.

    Attributes:
        metrics: task or group -> metric, such as `acc,none` or `acc_stderr,none` -> value.
        table: the results as lm-eval prints them.
        versions: task -> version; results of different versions cannot be compared.
        samples: task -> number of its examples.
    """

    metrics: dict[str, dict[str, float]]
    table: str
    versions: dict[str, Any]
    samples: dict[str, int]


def stay_offline() -> None:
    """Keep Hugging Face's libraries off the net. To be called before `datasets` is imported."""
    os.environ |= dict.fromkeys(_OFFLINE, "1")
    import huggingface_hub.constants

    huggingface_hub.constants.HF_HUB_OFFLINE = True


def import_lm_eval() -> Any:
    """The lm_eval package.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import lm_eval
        import lm_eval.models.huggingface
        import lm_eval.tasks
        import lm_eval.utils
    except ImportError as error:
        install = 'pip install -e ".[eval]"'
        raise ConfigError(f"benchmarks need lm_eval, which cannot be imported ({error}): {install}") from error
    return lm_eval


def evaluate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    words: Sequence[str],
    *,
    batch_size: int = 8,
    num_fewshot: int | None = None,
    limit: int | None = None,
    chat_template: bool = False,
) -> Evaluated:
    """Evaluate a model.

    Args:
        words: values of --tasks.
        batch_size: rows that are computed at once.
        num_fewshot: solved examples before each question; None: as each task says.
        limit: only the first examples of each task; None: all.
        chat_template: each question is a user's message.

    Raises:
        ConfigError: lm_eval is not installed, or has no such task.
        DataError: the data of a task are not on this machine.
    """
    lm_eval = import_lm_eval()
    manager = lm_eval.tasks.TaskManager()
    tasks = chosen_tasks(words, manager.all_tasks)
    _check_data(manager, tasks)
    lm = lm_eval.models.huggingface.HFLM(
        pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=batch_size, device=str(model.device)
    )
    found = lm_eval.simple_evaluate(
        model=lm,
        tasks=tasks,
        num_fewshot=num_fewshot,
        limit=limit,
        apply_chat_template=chat_template,
        task_manager=manager,
        log_samples=False,
    )
    metrics = {
        task: {name: value for name, value in values.items() if name not in _NO_METRICS and _is_number(value)}
        for task, values in found["results"].items()
    }
    counts = {task: int(one["effective"]) for task, one in found.get("n-samples", {}).items()}
    return Evaluated(
        metrics=metrics, table=lm_eval.utils.make_table(found), versions=dict(found.get("versions", {})), samples=counts
    )


def _check_data(manager: Any, tasks: Sequence[str | dict[str, Any]]) -> None:
    """Load the data of every task, so that all that are missing are named before any is evaluated."""
    import huggingface_hub.constants

    missing = []
    for task in tasks:
        try:
            _load(manager, task)
        except DataError as error:
            missing.append(str(error))
    if missing:
        listed = "\n".join(f"  - {line}" for line in missing)
        raise DataError(
            f"{len(missing)} of {len(tasks)} tasks have data that cannot be loaded here:\n{listed}\n"
            "Run this script once with --download 1 on a machine with internet, and copy its cache (HF_HOME) to "
            f"{huggingface_hub.constants.HF_HOME}; or leave the tasks out with --tasks"
        )


def _load(manager: Any, task: str | dict[str, Any]) -> None:
    try:
        manager.load([task])
    except Exception as error:
        # Data sets raise errors of many classes: not in a cache, no connection, a script instead of data.
        lines = str(error).strip().splitlines()
        raise DataError(
            f"{name_of(task)}: {type(error).__name__}: {lines[0] if lines else 'no reason given'}"
        ) from error


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
