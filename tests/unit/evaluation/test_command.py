"""The evaluating script as a user calls it."""

from __future__ import annotations

import json

import pytest

from minimind import demo
from minimind.errors import ConfigError
from minimind.evaluation import command
from minimind.evaluation.command import main, run
from minimind.evaluation.harness import Evaluated

START = [str(demo.WEIGHT_PATH), "--tokenizer_path", str(demo.TOKENIZER_PATH)]
FOUND = Evaluated(metrics={"piqa": {"acc,none": 0.5}}, table="a table", versions={"piqa": 1.0}, samples={"piqa": 3})


@pytest.fixture
def asked(monkeypatch):
    """Arguments of the evaluation, which is replaced."""
    given = {}

    def evaluate(model, tokenizer, words, **options):
        given.update(options, words=words, model=model)
        return FOUND

    monkeypatch.setattr(command, "evaluate", evaluate)
    monkeypatch.setattr(command, "import_lm_eval", lambda: None)
    monkeypatch.setattr(command, "stay_offline", lambda: given.update(offline=True))
    monkeypatch.setattr(command.importlib.metadata, "version", lambda name: "1")
    return given


def test_results_are_printed_and_written(asked, tmp_path, capsys):
    out = tmp_path / "new/results.json"
    values = run([*START, "--tasks", "piqa", "demo", "--limit", "3", "--out", str(out)])
    printed = capsys.readouterr().out
    assert "a table" in printed
    assert "The first 3 examples of each task only" in printed
    assert json.loads(out.read_text()) == json.loads(json.dumps(values))
    assert values["results"] == {"piqa": {"acc,none": 0.5}}
    assert values["settings"]["dtype"] == "torch.float32"
    assert asked["words"] == ("piqa", "demo")
    assert asked["offline"]
    assert asked["num_fewshot"] is None


def test_the_net_is_used_only_if_asked(asked):
    run([*START, "--download", "1", "--num_fewshot", "0"])
    assert "offline" not in asked
    assert asked["words"] == ("usual",)
    assert asked["num_fewshot"] == 0


def test_a_folder_as_out_is_refused_before_anything_is_computed(asked, tmp_path):
    with pytest.raises(ConfigError, match="is a folder"):
        run([*START, "--out", str(tmp_path)])
    assert asked == {}


def test_an_error_of_the_user_is_one_line(asked):
    with pytest.raises(SystemExit) as raised:
        main(["missing"])
    assert str(raised.value).startswith("WeightsError: missing: no such file or folder")
