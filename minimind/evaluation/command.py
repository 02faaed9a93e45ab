"""The evaluating script.

argv -> SOURCE -> model, tokenizer -> lm-eval's tasks -> a table, and results.json
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from transformers.utils import logging as transformers_logging

from minimind.chat.speaker import open_model
from minimind.config.fields import flag, flat_values
from minimind.conversion.flags import ComputeFlags, read_flags
from minimind.durable import whole_file
from minimind.errors import ConfigError, one_line_errors
from minimind.evaluation.harness import evaluate, import_lm_eval, stay_offline
from minimind.evaluation.tasks import USUAL


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateFlags:
    """Flags of the evaluating script."""

    tasks: tuple[str, ...] = flag(
        (USUAL,),
        "tasks of lm-eval; usual: those that MiniMind reports (ceval-valid, cmmlu, arc_easy, piqa, openbookqa, "
        "hellaswag, social_iqa); demo: a bundled tiny one",
    )
    out: str | None = flag(None, "JSON file for the results")
    num_fewshot: int | None = flag(
        None, "solved examples before each question; without this flag as each task says", low=0, zero_is_a_value=True
    )
    limit: int | None = flag(None, "only the first examples of each task: to try the command, not to report", low=0)
    apply_chat_template: bool = flag(False, "1: each question is a user's message in the chat template")
    batch_size: int = flag(8, "rows that are computed at once", low=1)
    download: bool = flag(False, "1: data sets that are not on this machine are downloaded; 0: they are an error")


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """The sections of the evaluating script."""

    script: ClassVar[str] = "launch/evaluate.py"
    description: ClassVar[str] = "Evaluate trained weights on benchmarks by lm-eval."

    evaluation: EvaluateFlags = dataclasses.field(default_factory=EvaluateFlags)
    compute: ComputeFlags = dataclasses.field(default_factory=ComputeFlags)


def main(argv: Sequence[str] | None = None) -> None:
    """Evaluate. An error of the user is printed in one line, and the exit status is 1."""
    transformers_logging.disable_progress_bar()
    with one_line_errors():
        run(sys.argv[1:] if argv is None else argv)


def run(argv: Sequence[str]) -> dict[str, Any]:
    """Evaluate, print the table, and return the values of --out.

    Raises:
        MiniMindError: flags are wrong, or the model, the tasks or their data cannot be used.
    """
    flags = read_flags(EvaluateConfig, argv)
    own = flags.config.evaluation
    if own.out is not None and Path(own.out).is_dir():
        raise ConfigError(f"--out {own.out}: is a folder; give the path of a file")
    if not own.download:
        stay_offline()
    import_lm_eval()
    trained, model, tokenizer = open_model(flags.source, flags.model, flags.config.compute)
    found = evaluate(
        model,
        tokenizer,
        own.tasks,
        batch_size=own.batch_size,
        num_fewshot=own.num_fewshot,
        limit=own.limit,
        chat_template=own.apply_chat_template,
    )
    values = {
        "source": {"path": trained.weights.origin, "kind": trained.kind, "step": trained.step},
        "results": found.metrics,
        "examples": found.samples,
        "task_versions": found.versions,
        "settings": {**flat_values(flags.config), "dtype": str(model.dtype), "device": str(model.device)},
        "versions": {name: importlib.metadata.version(name) for name in ("lm_eval", "transformers", "torch")},
    }
    print(found.table)
    if own.limit is not None:
        print(f"The first {own.limit} examples of each task only: no result to report.")
    if own.out is not None:
        _write(values, Path(own.out))
    return values


def _write(values: dict[str, Any], path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as partial:
            partial.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--out {path}: cannot be written ({error})") from error
