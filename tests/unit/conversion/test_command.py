"""The exporting script as a user calls it."""

from __future__ import annotations

import json

import pytest
import torch

from minimind import demo, save_weights
from minimind.conversion.command import export, main
from minimind.errors import ConfigError, WeightsError
from minimind.weights.sources import open_weights
from tests.unit.conversion.made import made, write_run

TOKENIZER = ("--tokenizer_path", demo.TOKENIZER_PATH)


def run(*argv):
    return export([str(word) for word in argv])


@pytest.fixture
def trained_run(tmp_path):
    start = made(seed=1)
    save_weights(start, tmp_path / "start.pth", torch.float32)
    with torch.no_grad():
        for parameter in start.parameters():
            parameter += 1e-6
    return write_run(
        tmp_path / "run", start, str(tmp_path / "start.pth"), open_weights(tmp_path / "start.pth", {}).fingerprint()
    )


def test_a_run_becomes_a_folder_and_its_losses_are_said(trained_run, tmp_path, capsys):
    values = run(trained_run, "--to", "qwen3", "--out", tmp_path / "out/qwen3", "--dtype", "float16")
    printed = capsys.readouterr().out
    assert "WARNING: float16 loses" in printed
    assert json.loads((tmp_path / "out/qwen3/export.json").read_text()) == values
    assert values["dtype"] == "float16"
    assert values["recommended_dtype"] == "float32"
    assert values["logits_differ_by"] < 1e-5
    assert sorted(values["files"]) == sorted(
        path.name for path in (tmp_path / "out/qwen3").iterdir() if path.name != "export.json"
    )
    # An export may be replaced; anything else may not.
    run(trained_run, "--to", "qwen3", "--out", tmp_path / "out/qwen3")
    assert not [path for path in (tmp_path / "out").iterdir() if path.name != "qwen3"]
    with pytest.raises(ConfigError, match="is there, and no earlier export"):
        run(trained_run, "--to", "qwen3", "--out", trained_run)


def test_without_a_dtype_nothing_is_rounded(trained_run, tmp_path):
    assert run(trained_run, "--to", "minimind", "--out", tmp_path / "out")["dtype"] == "float32"
    save_weights(made(), tmp_path / "half.pth", torch.float16)
    values = run(tmp_path / "half.pth", "--to", "qwen3", "--out", tmp_path / "half", *TOKENIZER)
    assert values["dtype"] == "float16"


def test_a_pth_has_minimind_s_name_and_the_flags_to_read_it_are_said(tmp_path, capsys):
    made("llama untied, YaRN").save_pretrained(tmp_path / "start")
    run(tmp_path / "start", "--to", "pth", "--out", tmp_path / "out")
    assert "read it with --num_attention_heads 4 --inference_rope_scaling 1" in capsys.readouterr().out
    given = {"num_attention_heads": 4, "inference_rope_scaling": True}
    written = open_weights(tmp_path / "out/export_32.pth", given)
    assert written.config.yarn == made("llama untied, YaRN").config.yarn
    (tmp_path / "out/export_32.pth").replace(tmp_path / "out/other.pth")
    with pytest.raises(ConfigError, match="is there, and no earlier export"):
        run(tmp_path / "start", "--to", "pth", "--out", tmp_path / "out/other.pth")


def test_a_model_that_a_pth_would_change_is_refused(tmp_path):
    made("qwen3", rms_norm_eps=1e-3).save_pretrained(tmp_path / "start")
    with pytest.raises(WeightsError, match=r"does not tell rms_norm_eps 0\.001 \(it would be 1e-06\)"):
        run(tmp_path / "start", "--to", "pth", "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_yarn_can_be_turned_on_for_weights_that_were_trained_without(tmp_path):
    made("qwen3").save_pretrained(tmp_path / "start")
    flags = ("--inference_rope_scaling", 1, *TOKENIZER)
    run(tmp_path / "start", "--to", "qwen3", "--out", tmp_path / "out", *flags)
    assert json.loads((tmp_path / "out/config.json").read_text())["rope_scaling"]["factor"] == 16
    # Of a folder that has Qwen3's form already, too.
    run(tmp_path / "out", "--to", "minimind", "--out", tmp_path / "again")
    assert json.loads((tmp_path / "again/config.json").read_text())["inference_rope_scaling"] is True


@pytest.mark.parametrize(
    ("argv", "error", "problem"),
    [
        ([], ConfigError, "--to is missing.*--out is missing"),
        (["--to", "qwen3", "--out", "o", "--auto_map", "1"], ConfigError, "--auto_map 1 is for --to minimind"),
        (["--to", "pth", "--out", "o", "--max_shard_size", "0GB"], ConfigError, "--max_shard_size 0GB: expected"),
        (["--to", "llama", "--out", "o"], WeightsError, "MiniMind generation 3 is no llama"),
        (["--to", "minimind", "--out", "o"], ConfigError, "has no tokenizer"),
        (["--to", "pth", "--out", "o", "--hidden_size", "64"], ConfigError, "--hidden_size is 64, but"),
    ],
)
def test_what_cannot_be_done_is_said(argv, error, problem, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_weights(made(), tmp_path / "model.pth")
    with pytest.raises(error, match=f"(?s){problem}"):
        run("model.pth", *argv)
    assert not (tmp_path / "o").exists()


def test_an_error_of_the_user_is_one_line(tmp_path):
    with pytest.raises(SystemExit) as raised:
        main([str(tmp_path / "missing"), "--to", "pth", "--out", str(tmp_path / "out")])
    assert str(raised.value).startswith("WeightsError: ")


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(tmp_path):
    made(vocab_size=61).save_pretrained(tmp_path / "start")
    with pytest.raises(ConfigError, match="the tokenizer has 6400 tokens, and the model 61"):
        run(tmp_path / "start", "--to", "qwen3", "--out", tmp_path / "out", *TOKENIZER)
