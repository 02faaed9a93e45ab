"""Flags of scripts that read trained weights."""

from __future__ import annotations

from pathlib import Path

import pytest

from minimind.config import DPOConfig, fields_of
from minimind.conversion.command import ExportConfig
from minimind.conversion.flags import model_flags, read_flags
from minimind.errors import ConfigError
from minimind.training.setup.start_weights import MODEL_SETTINGS


def read(*argv):
    return read_flags(ExportConfig, argv)


def test_model_flags_are_those_of_training():
    training = {flag.name: flag for flag in fields_of(DPOConfig)}
    assert {flag.name for flag in model_flags()} == set(MODEL_SETTINGS)
    for flag in model_flags():
        assert flag.metadata == training[flag.name].metadata


def test_given_flags_are_told_from_defaults():
    flags = read("out/dpo", "--to", "qwen3", "--num_attention_heads", "4", "--use_moe", "0")
    own = flags.config.export
    assert flags.source == Path("out/dpo")
    assert own.to == "qwen3"
    assert (own.check, own.auto_map, own.dtype) == (True, False, None)
    assert flags.model == {"num_attention_heads": 4, "use_moe": False}


@pytest.mark.parametrize(
    ("argv", "problem"),
    [
        ([], "required: SOURCE"),
        (["a", "--dtyp", "float32"], "unrecognized argument: --dtyp; did you mean --dtype"),
        (["a", "b"], "unrecognized argument: b"),
        (["a", "--to", "gguf"], "invalid choice: 'gguf'"),
        (["a", "--hidden_size", "0"], "--hidden_size 0 is below 1"),
    ],
)
def test_a_wrong_command_line_is_an_error(argv, problem):
    with pytest.raises(ConfigError, match=problem):
        read(*argv)
