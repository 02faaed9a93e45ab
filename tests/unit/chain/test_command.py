"""The chain's script: each stage starts from the one before, and the status says whether all improved."""

from __future__ import annotations

import json
import subprocess

import pytest

from minimind.chain import command
from minimind.chain.standing import Standing
from minimind.errors import ConfigError, LaunchError


@pytest.fixture
def runs(monkeypatch, tmp_path):
    """Runs that write metrics in place of launches; `values` are those of the last evaluations."""
    started, values = [], {"pretrain": 5.0, "sft": 0.9, "dpo": 0.8}

    def launch(stage, arguments, ranks):
        started.append((stage.name, arguments[arguments.index("--from_weight") + 1], ranks))
        folder = tmp_path / stage.name
        folder.mkdir()
        evaluated = enumerate((0.5 if stage.rises else 100.0, values[stage.name]))
        lines = [{"step": step, f"eval/{stage.metric}": value} for step, value in evaluated]
        (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))

    def look():
        numbers = iter(range(1, 9))

        def at(name, source):
            number = next(numbers)
            said = (f"answer {number}",) * 4
            return Standing(name=name, perplexity=100 / number, answer_accuracy=number / 10, answers=said)

        return at

    monkeypatch.setattr(command, "_launch", launch)
    monkeypatch.setattr(command, "_Look", look)
    monkeypatch.setattr(command, "open_weights", lambda path, fields: path)
    return started, values


def test_the_stages_follow_each_other(runs, tmp_path, capsys):
    command.main(["--out", str(tmp_path), "--num_gpus", "3"])
    pretrained, tuned = tmp_path / "pretrain/pretrain_128", tmp_path / "sft/full_sft_128"
    assert runs[0] == [("pretrain", "none", 3), ("sft", str(pretrained), 3), ("dpo", str(tuned), 3)]
    shown = capsys.readouterr().out
    assert "sft: held-out token_accuracy 0.5 -> 0.9" in shown
    assert "before  answer 3\n    after   answer 4\n" in shown
    rows = {words[0]: words[-3:] for words in map(str.split, shown.splitlines()) if words}
    assert rows["pretrain"] == ["50.00", "0.200", "-"]
    assert rows["dpo"] == ["25.00", "0.400", "0.800"]


def test_a_stage_that_is_not_better_fails_and_is_named(runs, tmp_path):
    runs[1]["dpo"] = 0.4
    with pytest.raises(SystemExit) as ended:
        command.main(["--out", str(tmp_path)])
    assert ended.value.code == (
        "The chain does not hold; not better:\n"
        "  - dpo: held-out rewards/accuracies 0.5 -> 0.4  NOT BETTER\n"
        "  - dpo: reward accuracy 0.400, where 0.5 is chance"
    )


def test_errors(monkeypatch, tmp_path):
    with pytest.raises(ConfigError, match="see --help"):
        command.run_chain(["--nowhere"])
    monkeypatch.setattr(command, "deepspeed_command", lambda: "false")
    monkeypatch.setattr(command, "_Look", lambda: lambda name, source: None)
    with pytest.raises(LaunchError, match="pretrain: the run has failed"):
        command.run_chain(["--out", str(tmp_path)])


def test_ranks_do_not_have_more_threads_than_cores(monkeypatch, tmp_path):
    given = []

    def start(arguments, **options):
        given.append(options["env"]["OMP_NUM_THREADS"])
        return subprocess_popen(["true"], stdout=subprocess.PIPE, text=True)

    subprocess_popen = subprocess.Popen
    monkeypatch.setattr(command.subprocess, "Popen", start)
    monkeypatch.setattr(command.os, "cpu_count", lambda: 4)
    stage = command.STAGES[0]
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    command._launch(stage, [], 2)
    command._launch(stage, [], 8)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    command._launch(stage, [], 2)
    assert given == ["2", "1", "3"]
