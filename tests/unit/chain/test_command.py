"""The chain's script: each stage starts from the one before, and the status says whether all improved."""

from __future__ import annotations

import json

import pytest

from minimind.chain import command
from minimind.errors import ConfigError, LaunchError


@pytest.fixture
def runs(monkeypatch, tmp_path):
    """Runs that write metrics in place of launches; `values` are those of the last evaluations."""
    started, values = [], {"pretrain": 5.0, "sft": 0.9, "dpo": 0.8}

    def launch(stage, arguments, ranks):
        started.append((stage.name, arguments[arguments.index("--from_weight") + 1], ranks))
        folder = tmp_path / stage.name
        folder.mkdir()
        lines = [{f"eval/{stage.metric}": value} for value in (0.5 if stage.rises else 100.0, values[stage.name])]
        (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))

    monkeypatch.setattr(command, "_launch", launch)
    monkeypatch.setattr(command, "_answers", lambda weights: [str(weights)] * 4)
    return started, values


def test_the_stages_follow_each_other(runs, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        command.main(["--out", str(tmp_path), "--num_gpus", "3"])
    assert ended.value.code == 0
    pretrained, tuned = tmp_path / "pretrain/pretrain_128", tmp_path / "sft/full_sft_128"
    assert runs[0] == [("pretrain", "none", 3), ("sft", str(pretrained), 3), ("dpo", str(tuned), 3)]
    assert "sft: held-out token_accuracy 0.5 -> 0.9" in capsys.readouterr().out


def test_a_stage_that_is_not_better_fails(runs, tmp_path):
    runs[1]["dpo"] = 0.4
    with pytest.raises(SystemExit) as ended:
        command.main(["--out", str(tmp_path)])
    assert ended.value.code == 1


def test_errors(monkeypatch, tmp_path):
    with pytest.raises(ConfigError, match="see --help"):
        command.run_chain(["--nowhere"])
    monkeypatch.setattr(command, "deepspeed_command", lambda: "false")
    with pytest.raises(LaunchError, match="pretrain: the run has failed"):
        command.run_chain(["--out", str(tmp_path)])
