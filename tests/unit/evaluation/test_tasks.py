"""Which tasks a value of --tasks means."""

from __future__ import annotations

import json

import pytest

from minimind.errors import ConfigError
from minimind.evaluation.tasks import USUAL_TASKS, chosen_tasks, demo_task, name_of

KNOWN = (*USUAL_TASKS, "mmlu")


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["usual"], list(USUAL_TASKS)),
        (["siqa,arc", "ceval"], ["social_iqa", "arc_easy", "ceval-valid"]),
        (["mmlu", "demo", "mmlu"], ["mmlu", "minimind_demo"]),
        (["piqa", "usual"], ["piqa", *(name for name in USUAL_TASKS if name != "piqa")]),
    ],
)
def test_names_groups_and_short_names(words, names):
    assert [name_of(task) for task in chosen_tasks(words, KNOWN)] == names


def test_unknown_names_are_listed_with_similar_ones():
    with pytest.raises(ConfigError) as raised:
        chosen_tasks(["mlmu", "nothing like it", "piqa"], KNOWN)
    assert "--tasks mlmu: lm-eval has no such task; similar: mmlu" in str(raised.value)
    assert "2 problems" in str(raised.value)


def test_the_bundled_task_has_two_answers_and_the_better_one_in_either_place():
    with open(demo_task()["dataset_kwargs"]["data_files"]["validation"], encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    assert len(rows) == 24
    assert all(len(set(row["answers"])) == 2 for row in rows)
    assert sum(row["better"] for row in rows) == 12
