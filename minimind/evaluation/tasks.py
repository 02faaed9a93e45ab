"""Which tasks are evaluated: MiniMind's usual ones, any of lm-eval's, and a tiny one that needs no download.

--tasks -> chosen_tasks -> names of lm-eval's tasks, configurations of the bundled ones
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from minimind.errors import ConfigError

# The tasks that MiniMind reports, and short names of them.
USUAL, DEMO = "usual", "demo"
USUAL_TASKS = ("ceval-valid", "cmmlu", "arc_easy", "piqa", "openbookqa", "hellaswag", "social_iqa")
_SHORT = {"ceval": "ceval-valid", "arc": "arc_easy", "siqa": "social_iqa"}
_DEMO_PATH = Path(__file__).with_name("demo.jsonl")


def demo_task() -> dict[str, Any]:
    """The configuration of the bundled task: which of two answers to a question of the demo is likelier."""
    return {
        "task": "minimind_demo",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"validation": str(_DEMO_PATH)}},
        "validation_split": "validation",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{answers}}",
        "doc_to_target": "{{better}}",
        # A template has already opened the answer.
        "target_delimiter": "",
        "metric_list": [
            {"metric": name, "aggregation": "mean", "higher_is_better": True} for name in ("acc", "acc_norm")
        ],
        "metadata": {"version": 1.0},
    }


def chosen_tasks(words: Sequence[str], known: Iterable[str]) -> list[str | dict[str, Any]]:
    """The tasks that --tasks means, each once, in lm-eval's own terms.

    Args:
        words: names, separated by spaces or commas.
        known: lm-eval's names of tasks, groups and tags.

    Raises:
        ConfigError: names that lm-eval does not have, each with similar ones.
    """
    names = [name for word in words for name in word.split(",") if name]
    names = [one for name in names for one in (USUAL_TASKS if name == USUAL else (_SHORT.get(name, name),))]
    known = set(known)
    problems = []
    for name in dict.fromkeys(names):
        if name != DEMO and name not in known:
            near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
            problems.append(f"--tasks {name}: lm-eval has no such task; similar: {', '.join(near) or 'none'}")
    if problems:
        raise ConfigError.from_problems(problems)
    return [demo_task() if name == DEMO else name for name in dict.fromkeys(names)]


def name_of(task: str | dict[str, Any]) -> str:
    """The name of a task in results."""
    return task if isinstance(task, str) else task["task"]
