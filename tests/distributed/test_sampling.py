"""Samples on two ranks: the answers of one process, the same training as without them, and a resumed run goes on."""

from __future__ import annotations

import json

import pytest

from minimind import demo
from tests.distributed.launching import launch, metrics, train

pytestmark = pytest.mark.distributed


@pytest.mark.parametrize(
    "cases",
    ["2:plain,3:plain,3:adapters", pytest.param("2:experts,3:experts,3:recomputed", marks=pytest.mark.long)],
)
def test_generation_within_the_engine_changes_nothing_and_is_that_of_the_plain_model(cases):
    done = launch("tests/distributed/workers/sampling.py", cases, ranks=2).succeeded()
    assert done.output.count("the same answers and the same training") == 3


def rows(folder):
    return [json.loads(line) for line in (folder / "samples.jsonl").read_text(encoding="utf-8").splitlines()]


def test_a_run_samples_and_goes_on_when_it_is_resumed(tmp_path):
    """Both ranks under ZeRO-3, three prompts; the demo's weights, whose answers one knows."""
    prompts = tmp_path / "prompts.jsonl"
    questions = ("What do horses eat?", "2加6等于几？", "Can you work out 5 plus 6?")
    prompts.write_text("".join(json.dumps({"prompt": one}) + "\n" for one in questions), encoding="utf-8")
    folder = tmp_path / "run"
    flags = (
        *("--data_path", demo.TRAIN_PATH, "--tokenizer_path", demo.TOKENIZER_PATH, "--from_weight", demo.WEIGHT_PATH),
        *("--dtype", "float32", "--batch_size", 2, "--max_seq_len", 64, "--limit", 16, "--learning_rate", 1e-3),
        *("--sample_prompts", prompts, "--sample_interval", 2, "--sample_tokens", 20, "--save_dir", folder),
        *("--save_interval", 1, "--log_interval", 1),
    )
    done = train(*flags, config="zero3", ranks=2).succeeded()
    whole = rows(folder)
    assert [row["step"] for row in whole] == [0] * 3 + [2] * 3 + [4] * 3
    assert [row["prompt"] for row in whole[:3]] == list(questions)
    assert all(row["start"] == whole[number % 3]["answer"] for number, row in enumerate(whole))
    assert whole[1]["answer"] == "好的！2加6的结果是8。"
    assert [entry["step"] for entry in metrics(folder, "samples/distinct_2")] == [0, 2, 4]
    shown = done.output.partition("Answers, before and after training:")[2]
    assert all(question in shown for question in questions)

    # As after a kill: the checkpoint of step 3, and samples of a later step.
    (folder / "checkpoints" / "latest").write_text("step00000003")
    resumed = train(*flags, "--from_resume", 1, config="zero2", ranks=1).succeeded()
    assert "resuming after step 3" in resumed.output
    assert [(row["step"], row["start"]) for row in rows(folder)] == [(row["step"], row["start"]) for row in whole]
