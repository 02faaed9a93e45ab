"""lm-eval on a model in memory: the real one where it is installed, else a stand-in for what is asked of it."""

from __future__ import annotations

import importlib.util
import os
import types

import pytest
import torch

from minimind import demo
from minimind.chat.speaker import open_model
from minimind.conversion.flags import ComputeFlags
from minimind.errors import ConfigError, DataError
from minimind.evaluation import harness
from minimind.evaluation.harness import evaluate, import_lm_eval, stay_offline
from minimind.evaluation.tasks import demo_task

INSTALLED = importlib.util.find_spec("lm_eval") is not None


@pytest.fixture(scope="module")
def opened():
    return open_model(demo.WEIGHT_PATH, {}, ComputeFlags(tokenizer_path=str(demo.TOKENIZER_PATH), device="cpu"))[1:]


def row_log_prob(model, tokenizer, question, answer):
    """Log-prob of an answer to a user's message, computed without lm-eval."""
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True
    )
    start = tokenizer(text, add_special_tokens=False).input_ids
    ids = tokenizer(text + answer, add_special_tokens=False).input_ids
    with torch.no_grad():
        log_probs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    return sum(log_probs[place - 1, ids[place]].item() for place in range(len(start), len(ids)))


@pytest.mark.skipif(not INSTALLED, reason="lm_eval is not installed; it is an extra")
def test_the_bundled_task_gives_the_accuracy_of_the_log_probs(opened, monkeypatch):
    import json

    for name in harness._OFFLINE:
        monkeypatch.setenv(name, "1")
    found = evaluate(*opened, ["demo"], chat_template=True)
    with open(demo_task()["dataset_kwargs"]["data_files"]["validation"], encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    right = [
        max((0, 1), key=lambda index: row_log_prob(*opened, row["question"], row["answers"][index])) == row["better"]
        for row in rows
    ]
    assert found.metrics["minimind_demo"]["acc,none"] == sum(right) / len(right)
    assert found.samples == {"minimind_demo": 24}
    assert "minimind_demo" in found.table


@pytest.mark.skipif(INSTALLED, reason="lm_eval is installed")
def test_without_lm_eval_the_error_says_how_to_install_it():
    with pytest.raises(ConfigError, match=r'benchmarks need lm_eval.*pip install -e ".\[eval\]"'):
        import_lm_eval()


class Manager:
    """Tasks of which one has no data."""

    all_tasks = ("piqa", "mmlu")

    def load(self, tasks):
        if tasks == ["mmlu"]:
            raise ConnectionError("cannot reach the hub\nand more")


def stand_in(asked):
    """What the harness uses of lm_eval; `asked` gets the arguments."""

    def simple_evaluate(**arguments):
        asked.update(arguments)
        values = {"alias": "piqa", "acc,none": 0.5, "acc_stderr,none": "N/A", "sample_len": 3}
        return {"results": {"piqa": values}, "n-samples": {"piqa": {"effective": 3}}, "versions": {"piqa": 1.0}}

    hugging_face = types.SimpleNamespace(HFLM=lambda **arguments: asked.update(arguments))
    return types.SimpleNamespace(
        tasks=types.SimpleNamespace(TaskManager=Manager),
        models=types.SimpleNamespace(huggingface=hugging_face),
        utils=types.SimpleNamespace(make_table=lambda found: "table"),
        simple_evaluate=simple_evaluate,
    )


def test_metrics_are_numbers_and_flags_reach_lm_eval(opened, monkeypatch):
    asked = {}
    monkeypatch.setattr(harness, "import_lm_eval", lambda: stand_in(asked))
    found = evaluate(*opened, ["piqa"], batch_size=4, num_fewshot=0, limit=3, chat_template=True)
    assert found.metrics == {"piqa": {"acc,none": 0.5}}
    assert (found.samples, found.versions, found.table) == ({"piqa": 3}, {"piqa": 1.0}, "table")
    assert asked["pretrained"] is opened[0]
    assert (asked["batch_size"], asked["num_fewshot"], asked["limit"], asked["apply_chat_template"]) == (4, 0, 3, True)


def test_data_that_are_missing_are_named_before_anything_is_evaluated(opened, monkeypatch):
    asked = {}
    monkeypatch.setattr(harness, "import_lm_eval", lambda: stand_in(asked))
    with pytest.raises(
        DataError, match=r"(?s)1 of 2 tasks .*mmlu: ConnectionError: cannot reach.*--download 1 .*\(HF_HOME\) to /"
    ):
        evaluate(*opened, ["piqa", "mmlu"])
    assert asked == {}


def test_offline_is_said_to_all_libraries(monkeypatch):
    import huggingface_hub.constants

    for name in harness._OFFLINE:
        monkeypatch.setenv(name, "0")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    stay_offline()
    assert all(os.environ[name] == "1" for name in harness._OFFLINE)
    assert huggingface_hub.constants.HF_HUB_OFFLINE is True
