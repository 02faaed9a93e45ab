"""Mistakes in a DeepSpeed file are one error that names each key and the remedy."""

from __future__ import annotations

import json

import pytest

from minimind.config import parse_settings
from minimind.errors import ConfigError
from minimind.training.setup.prepare import prepare
from tests.conftest import REPO
from tests.faults.preparation import one_rank, preparation_error


@pytest.fixture
def ds_file(tmp_path):
    """Write zero2.json with other values; None removes a key."""

    def write(**changes):
        values = json.loads((REPO / "ds_configs/zero2.json").read_text())
        values.update(changes)
        path = tmp_path / "ds.json"
        path.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))
        return path

    return write


def test_missing_deepspeed_file():
    assert "ds_configs/none.json: no such DeepSpeed configuration" in str(
        preparation_error("--deepspeed", "ds_configs/none.json")
    )


def test_invalid_deepspeed_file_is_named_with_its_line(tmp_path):
    path = tmp_path / "ds.json"
    path.write_text('{\n  "bf16": {"enabled": true},\n  oops\n}')
    assert f"{path}, line 3" in str(preparation_error("--deepspeed", path))


@pytest.mark.parametrize(
    ("changes", "flags", "message"),
    [
        ({"gradient_clipping": 0.5}, ("--grad_clip", 2), "'gradient_clipping' is 0.5 but --grad_clip is 2.0"),
        (
            {"optimizer": {"type": "AdamW", "params": {"lr": 1e-3}}},
            ("--learning_rate", 1e-4),
            "'optimizer.params.lr' is 0.001 but --learning_rate is 0.0001",
        ),
        ({"bf16": {"enabled": False}}, ("--dtype", "bfloat16"), "'bf16.enabled' contradicts --dtype bfloat16"),
        ({"zero_optimisation": {"stage": 2}}, (), "unknown key 'zero_optimisation'; did you mean 'zero_optimization'?"),
        ({"zero_optimization": {"stag": 2}}, (), "unknown key 'zero_optimization.stag'"),
        ({"bf16": {"enabled": True}, "fp16": {"enabled": True}}, (), "bf16 and fp16 are both enabled"),
        ({"train_batch_size": 9}, (), "'train_batch_size' is 9, but batch_size 8 x accumulation_steps 1 x 1 rank is 8"),
        ({"train_micro_batch_size_per_gpu": 2.5}, (), "'train_micro_batch_size_per_gpu' is 2.5"),
        ({"gradient_clipping": -1}, (), "'gradient_clipping' is -1"),
        ({"zero_optimization": {"stage": 2, "offload_param": {"device": "cpu"}}}, (), "needs stage 3, not 2"),
        ({"zero_optimization": {"stage": 5}}, (), "stage"),
        ({"bf16": "auto"}, (), "'bf16' is \"auto\"; an object is expected"),
        ({"bf16": True}, (), "'bf16' is true; an object is expected"),
        ({"optimizer": "AdamW"}, (), "'optimizer' is \"AdamW\"; an object is expected"),
        ({"optimizer": {"type": "AdamW", "params": "auto"}}, (), "'optimizer.params' is \"auto\""),
        ({"optimizer": {"type": "AdamX"}}, (), "'optimizer.type' is \"AdamX\"; known are Adam, AdamW"),
        (
            {"optimizer": {"type": "AdamW", "params": {"learning_rate": 1}}},
            (),
            "unknown key 'optimizer.params.learning",
        ),
        ({"steps_per_print": "x"}, (), "'steps_per_print' is \"x\"; a number is expected"),
        ({"amp": {"enabled": True}}, (), "'amp' is DeepSpeed's, but not supported here: use bf16"),
        ({"checkpoint": {"use_node_local_storage": True}}, (), "'checkpoint' is DeepSpeed's, but not supported here:"),
        ({"activation_checkpointing": {}}, (), "not supported here: use --gradient_checkpointing 1"),
        ({"compile": {"deepcompile": True}}, (), "not supported here: use --use_compile 1"),
        ({"torch_autocast": {"enabled": True}}, (), "'torch_autocast' is DeepSpeed's, but not supported here: the pre"),
        ({"data_types": {"grad_accum_dtype": "fp32"}}, (), "'data_types' is DeepSpeed's, but not supported here: the"),
        ({"train_batch_size": 32, "gradient_accumulation_steps": 1}, (), "'train_batch_size' is 32, but batch_size 8"),
        ({"zero_optimization": {"stage": 0}}, (), "bfloat16 at ZeRO stage 0"),
        ({"scheduler": {"type": "WarmupLR"}}, (), "'scheduler' is not taken from the file"),
        ({"steps_per_print": "auto"}, (), "'steps_per_print' is \"auto\", which is not supported for this key"),
        ({}, ("--dtype", "float16"), "float16 needs a GPU"),
    ],
)
def test_deepspeed_file_problems(changes, flags, message, ds_file):
    error = preparation_error("--deepspeed", ds_file(**changes), *flags)
    assert isinstance(error, ConfigError)
    assert message in str(error)


def test_reference_is_always_stage_3_without_an_optimizer(tmp_path):
    path = tmp_path / "reference.json"
    path.write_text('{"zero_optimization": {"stage": 2}, "optimizer": {"type": "AdamW"}}')
    message = str(preparation_error("--reference_config", path))
    assert "the reference is always a ZeRO-3 shard" in message
    assert "'optimizer' does not apply to the reference" in message


def test_every_problem_is_in_one_error(ds_file):
    path = ds_file(zero_optimisation={}, gradient_clipping=0.5, bf16={"enabled": True}, fp16={"enabled": True})
    flags = ("--deepspeed", path, "--grad_clip", 2, "--data_path", "nowhere.jsonl", "--from_weight", "gone.pth")
    message = str(preparation_error(*flags))
    for part in ("zero_optimisation", "--grad_clip is 2.0", "both enabled", "nowhere.jsonl", "gone.pth"):
        assert part in message


def test_auto_and_missing_keys_are_resolved_and_given_values_are_kept(ds_file):
    path = ds_file(train_batch_size=16, optimizer=None, gradient_clipping=0.25, fp16=None, bf16=None)
    prepared = prepare(parse_settings(["--deepspeed", str(path)]), one_rank())
    values, settings = prepared.policy_config.values, prepared.settings
    assert values["train_batch_size"] == 16
    assert values["gradient_accumulation_steps"] == settings.config.optimisation.accumulation_steps == 2
    assert settings.origins["accumulation_steps"] == settings.origins["grad_clip"] == "DeepSpeed file"
    assert settings.config.optimisation.grad_clip == 0.25
    assert values["bf16"]["enabled"] is True
    assert values["optimizer"]["params"] == {
        "torch_adam": True, "fused": True, "lr": settings.config.optimisation.learning_rate,
        "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.01,
    }  # fmt: skip
