"""Reading a DeepSpeed file, and the problems of its keys. Their use by the resolver: test_ds_config_files.py."""

from __future__ import annotations

import json

import pytest

from minimind.engine.ds_schema import checked_keys, read_config_file, value_at
from minimind.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"bf16": {}, "bf16": {}}', "duplicate key 'bf16'"),
        ('{"bf16": {"enabled": true, "enabled": true}}', "duplicate key 'enabled'"),
        ('{"gradient_clipping": NaN}', "NaN is not valid JSON"),
        ('{"gradient_clipping": -Infinity}', "-Infinity is not valid JSON"),
        ('{\n"bf16": oops}', "line 2: "),
        ("[]", "a DeepSpeed configuration is one JSON object"),
        ("3", "a DeepSpeed configuration is one JSON object"),
    ],
)
def test_files_that_are_no_configuration_are_refused(text, message, tmp_path):
    path = tmp_path / "ds.json"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_config_file(path)
    assert str(path) in str(caught.value)
    assert message in str(caught.value)


def test_missing_and_undecodable_files_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="no such DeepSpeed configuration; see ds_configs/"):
        read_config_file(tmp_path / "none.json")
    path = tmp_path / "ds.json"
    path.write_bytes(b'{"a": "\xff"}')
    with pytest.raises(ConfigError, match="is one JSON object"):
        read_config_file(path)


@pytest.mark.parametrize(
    ("path", "value"),
    [("a", {"b": {"c": 0}}), ("a.b.c", 0), ("a.x", None), ("x", None), ("a.b.c.d", None)],
)
def test_value_at_a_dotted_path(path, value):
    assert value_at({"a": {"b": {"c": 0}}}, path) == value


def test_valid_keys_have_no_problems_and_the_optimizer_gets_parameters(tmp_path):
    values = {"bf16": {"enabled": "auto"}, "steps_per_print": 10, "optimizer": {"type": "AdamW"}}
    assert checked_keys(tmp_path, values) == []
    assert values["optimizer"]["params"] == {}


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"train_batch_sise": 8}, "unknown key 'train_batch_sise'; did you mean 'train_batch_size'?"),
        ({"qqq": 8}, "unknown key 'qqq'"),
        ({"elasticity": {}}, "'elasticity' is DeepSpeed's, but not supported here: ranks do not change within a run"),
        ({"steps_per_print": True}, "'steps_per_print' is true; a number is expected"),
        ({"dump_state": 1}, "'dump_state' is 1; a switch is expected"),
        ({"bf16": {"enabeld": True}}, "unknown key 'bf16.enabeld'; did you mean 'bf16.enabled'?"),
    ],
)
def test_each_wrong_key_is_one_problem(values, problem, tmp_path):
    assert checked_keys(tmp_path, values) == [problem]


def test_sections_that_are_no_objects_are_refused_together(tmp_path):
    with pytest.raises(ConfigError) as caught:
        checked_keys(tmp_path, {"bf16": 1, "zero_optimization": None, "unknown": 3})
    assert str(caught.value).count("an object is expected") == 2
    assert json.dumps({"stage": 2}) in str(caught.value)
