"""Trained weights in every form are opened as what they are."""

from __future__ import annotations

import json

import pytest
import torch

from minimind import demo, save_weights
from minimind.conversion.trained import open_start, open_trained
from minimind.errors import CheckpointError, ConfigError, WeightsError
from minimind.weights.io import save_huggingface
from tests.unit.conversion.made import made, own_state, write_checkpoint, write_run

NORM = "model.norm.weight"


def assert_weights(trained, model):
    for name, tensor in own_state(model).items():
        assert torch.equal(trained.weights.read(name), tensor)


def test_a_run_is_read_from_its_newest_checkpoint(tmp_path):
    old, new = made(seed=1), made(seed=2)
    run = write_run(tmp_path / "run", old, "start.pth", "abc")
    write_checkpoint(run / "checkpoints/step00000009", new, step=9)
    (run / "checkpoints/latest").write_text("step00000009")
    for path in (run, run / "checkpoints", run / "checkpoints/step00000009"):
        trained = open_trained(path, {})
        assert_weights(trained, new)
        assert (trained.kind, trained.step, trained.run) == ("checkpoint", 9, run)
        assert trained.setting("save_weight") == "dpo"
        assert trained.setting("unknown") is None
        assert trained.tokenizer == demo.TOKENIZER_PATH
    assert_weights(open_trained(run / "checkpoints/step00000007", {}), old)


def test_a_checkpoint_elsewhere_has_no_run(tmp_path):
    trained = open_trained(write_checkpoint(tmp_path / "copy", made()), {})
    assert (trained.run, trained.record, trained.tokenizer, trained.step) == (None, {}, None, 7)


def test_a_run_without_checkpoints_is_read_from_its_weights(tokenizer, tmp_path):
    model = made()
    save_huggingface(model.config, model.state_dict(), tmp_path / "dpo_32", tokenizer, torch.float32)
    (tmp_path / "run.json").write_text(json.dumps({"weights": "start.pth", "identity": {"start weights": "abc"}}))
    trained = open_trained(tmp_path, {})
    assert_weights(trained, model)
    assert (trained.kind, trained.run) == ("folder", tmp_path)
    assert trained.tokenizer == tmp_path / "dpo_32"
    assert trained.identity["start weights"] == "abc"


def test_an_export_keeps_what_is_known_of_its_run(tmp_path):
    made().save_pretrained(tmp_path)
    record = {
        "base": {"path": "start.pth", "hash": "abc"},
        "run": {"path": "out/dpo", "step": 4, "total_steps": 5, "job": {"beta": 0.1}},
    }
    (tmp_path / "export.json").write_text(json.dumps(record))
    trained = open_trained(tmp_path, {})
    assert (trained.step, str(trained.run), trained.record["weights"]) == (4, "out/dpo", "start.pth")
    assert trained.identity == {"start weights": "abc", "total_steps": 5, "beta": 0.1}


def test_flags_say_what_a_pth_does_not_tell(tmp_path):
    model = made("llama untied, YaRN")
    save_weights(model, tmp_path / "model.pth", torch.float32)
    given = {"num_attention_heads": 4, "inference_rope_scaling": True}
    trained = open_trained(tmp_path / "model.pth", given)
    assert trained.weights.config.to_dict() == model.config.to_dict()


def test_flags_that_contradict_the_weights_are_listed(tmp_path):
    made("llama untied, YaRN").save_pretrained(tmp_path)
    given = {"num_attention_heads": 2, "hidden_size": 64, "use_moe": False, "inference_rope_scaling": False}
    with pytest.raises(ConfigError) as raised:
        open_trained(tmp_path, given)
    assert "3 problems" in str(raised.value)
    for text in ("--num_attention_heads is 2", "--hidden_size is 64", "--inference_rope_scaling is 0"):
        assert text in str(raised.value)


def test_a_flag_without_a_meaning_for_the_model_is_refused(tmp_path):
    from tests.unit.weights.conftest import llama

    llama(tied=True).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"--generation 2: .* is of type llama, without this setting"):
        open_trained(tmp_path, {"generation": 2})
    with pytest.raises(ConfigError, match=r"--rope_theta is 5\.0"):
        open_trained(tmp_path, {"rope_theta": 5.0})


def test_what_is_no_weights_is_refused(tmp_path):
    with pytest.raises(WeightsError, match="no such file or folder"):
        open_trained(tmp_path / "missing", {})
    with pytest.raises(WeightsError, match=r"neither a \.pth file nor a Hugging Face folder"):
        open_trained(tmp_path, {})
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"manifest\.json cannot be read"):
        open_trained(tmp_path, {})
    (tmp_path / "manifest.json").unlink()
    (tmp_path / "run.json").write_text("[]")
    made().save_pretrained(tmp_path)
    with pytest.raises(WeightsError, match=r"run.json: cannot be read \(not an object\)"):
        open_trained(tmp_path, {})


def test_a_record_that_a_pth_has_left_in_a_folder_is_not_the_folder_s(tmp_path):
    made().save_pretrained(tmp_path)
    record = {"to": "pth", "run": {"path": "out/other", "step": 4}, "base": None}
    (tmp_path / "export.json").write_text(json.dumps(record))
    assert (open_trained(tmp_path, {}).run, open_trained(tmp_path, {}).step) == (None, None)
    # Values that no export has written are as if they were not there.
    (tmp_path / "export.json").write_text(json.dumps({**record, "to": "minimind", "run": []}))
    assert open_trained(tmp_path, {}).step is None


def test_a_stopped_run_with_another_template_has_no_tokenizer_yet(tmp_path):
    """The one that it was given has not the template that it trained with."""
    run = write_run(tmp_path / "run", made(), "start.pth", "abc")
    record = json.loads((run / "run.json").read_text())
    record["settings"]["chat_template"] = {"value": "other.jinja", "origin": "flag"}
    (run / "run.json").write_text(json.dumps(record))
    assert open_trained(run, {}).tokenizer is None


def test_start_weights_of_a_run_are_those_that_training_reads(tokenizer, tmp_path):
    """Its checkpoint has them in float32, its folder rounded: the next run starts from the folder."""
    run = write_run(tmp_path / "run", made(seed=1), "start.pth", "abc")
    assert torch.equal(open_start(run, {}).read(NORM), own_state(made(seed=1))[NORM])
    save_huggingface(made().config, made(seed=2).state_dict(), run / "dpo_32", tokenizer, torch.float32)
    assert torch.equal(open_start(run, {}).read(NORM), own_state(made(seed=2))[NORM])
