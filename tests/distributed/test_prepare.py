"""The preparing script, and the run that it prepares: the run finds the tokenised pairs and trains on the same ones."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from minimind import demo
from tests.distributed.launching import launch

pytestmark = pytest.mark.distributed


def prepared(*flags: object, ranks: int = 1, script: str = "launch/train_dpo.py") -> list[str]:
    """Flags of the command that the script prints."""
    done = launch("launch/prepare_data.py", *flags, ranks=ranks).succeeded()
    words = shlex.split(done.output[done.output.rindex("    deepspeed ") :].replace("\\\n", " "))
    assert words[:4] == ["deepspeed", "--num_gpus", str(ranks), script]
    return words[4:]


def files(cache: Path) -> dict[str, tuple[int, int]]:
    """Tokenised files with their inodes and times: a file that is written again has others."""
    return {
        str(path.relative_to(cache)): (path.stat().st_ino, path.stat().st_mtime_ns)
        for path in cache.glob("pairs-*/**/*")
    }


def test_the_demo_trains_from_the_cache_that_was_written(tmp_path):
    """On two ranks, of which one prepares."""
    flags = ("--max_steps", 1, "--cache_dir", tmp_path / "cache", "--save_dir", tmp_path / "run")
    command = prepared(*flags, "--out", tmp_path / "out", ranks=2)
    before = files(tmp_path / "cache")
    assert len(before) > 10
    launch("launch/train_dpo.py", *command, ranks=2).succeeded()
    assert files(tmp_path / "cache") == before
    report = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    assert (report["pairs"], report["cost"]["steps"], report["cost"]["global_batch"]) == (720, 1, 16)
    assert [source["name"] for source in report["eval_sources"]] == [str(demo.EVAL_PATH)]
    assert report["findings"] == []


def test_real_rows_are_split_and_trained_on(shared, tmp_path):
    """300 Chinese pairs; the run says the same about them as the report."""
    flags = ["--data_path", shared / "data" / "dpo_zh.jsonl", "--tokenizer_path", shared / "tokenizers" / "minimind3"]
    flags += ["--from_weight", "none", "--hidden_size", 64, "--num_hidden_layers", 1, "--max_seq_len", 512]
    flags += ["--max_steps", 1, "--cache_dir", tmp_path / "cache", "--save_dir", tmp_path / "run"]
    command = prepared(*flags, "--eval_share", 0.05, "--out", tmp_path / "out")
    before = files(tmp_path / "cache")
    done = launch("launch/train_dpo.py", *command).succeeded()
    assert files(tmp_path / "cache") == before
    report = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    assert f"{report['pairs']} pairs x 1 epoch" in done.output
    for source in (*report["sources"], *report["eval_sources"]):
        assert all(message in done.output for message in source["messages"])
    assert report["equal"]["leaked_prompts"]["pairs"] == 0
    rows = [(tmp_path / "out" / name).read_bytes().splitlines() for name in ("train.jsonl", "eval.jsonl")]
    original = (shared / "data" / "dpo_zh.jsonl").read_bytes().splitlines()
    assert sorted(rows[0] + rows[1]) == sorted(original)


CONVERSATIONS = [
    {"conversations": [{"role": "user", "content": f"{i} + 1?"}, {"role": "assistant", "content": f"It is {i + 1}."}]}
    for i in range(24)
]
TEXTS = [{"text": f"{i} and 1 make {i + 1}. " * (i + 1)} for i in range(24)]


@pytest.mark.parametrize(
    ("job", "script", "rows"),
    [("sft", "launch/train_sft.py", CONVERSATIONS), ("pretrain", "launch/pretrain.py", TEXTS)],
)
def test_data_of_the_other_jobs_are_split_and_trained_on(job, script, rows, tmp_path):
    """The run finds the cache, and says the same about the rows as the report."""
    data = tmp_path / "rows.jsonl"
    data.write_text("\n".join([*map(json.dumps, rows), '{"text": " ", "conversations": []}']), encoding="utf-8")
    flags = ["--data_path", data, "--tokenizer_path", demo.TOKENIZER_PATH, "--from_weight", "none"]
    flags += ["--hidden_size", 64, "--num_hidden_layers", 1, "--max_seq_len", 48, "--batch_size", 2]
    flags += ["--accumulation_steps", 1, "--max_steps", 1, "--cache_dir", tmp_path / "cache", "--save_dir", tmp_path]
    command = prepared("--job", job, *flags, "--eval_share", 0.25, "--out", tmp_path / "out", script=script)
    before = files(tmp_path / "cache")
    assert len(before) > 20
    done = launch(script, *command).succeeded()
    assert files(tmp_path / "cache") == before
    report = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    assert f"{report['pairs']} {report['items']} x 2 epochs" in done.output
    for source in (*report["sources"], *report["eval_sources"]):
        assert all(message in done.output for message in source["messages"])
    assert (report["equal"]["leaked_pairs"]["pairs"], report["equal"]["eval_prompts"]) == (0, 6)
    kept = [
        (tmp_path / "out" / name).read_text(encoding="utf-8").splitlines() for name in ("train.jsonl", "eval.jsonl")
    ]
    assert sorted(kept[0] + kept[1]) == sorted(data.read_text(encoding="utf-8").splitlines())
