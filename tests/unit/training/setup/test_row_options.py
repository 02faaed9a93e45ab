"""Flags of data as options of reading and encoding rows."""

from __future__ import annotations

import json

import pytest

from minimind.config import PretrainConfig, parse_settings
from minimind.data.sources import open_source
from minimind.errors import ConfigError
from minimind.training.setup.row_options import encoding_options, shape_options


def test_shapes_are_read_as_the_flags_say(write_rows):
    source = open_source(write_rows({"x": 1}))
    flags = ("--data_format", "answers", "--pairing", "all", "--score_gap", "2")
    options = shape_options(parse_settings(flags).config.data, source)
    assert (options.data_format, options.pairing, options.score_gap) == ("answers", "all", 2)
    assert options.dataset_info is None


def test_encoding_options_are_those_of_the_job(tokenizer):
    flags = ("--template_kwargs", json.dumps({"add_generation_prompt_": 1}), "--last_turn_only", "1")
    with pytest.raises(ConfigError, match="the chat template does not read 'add_generation_prompt_'"):
        encoding_options(parse_settings(flags).config.data, tokenizer)
    options = encoding_options(parse_settings(flags[2:]).config.data, tokenizer)
    assert (options.mask, options.last_turn_only, options.template_kwargs) == ("turns", True, {})
    assert encoding_options(parse_settings((), PretrainConfig).config.data, tokenizer).mask == "text"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("{", "invalid JSON"),
        ("[1]", "not a JSON object"),
        ('{"messages": 1}', "no variable"),
        ('{"no_such": 1}', "does not read"),
    ],
)
def test_variables_that_no_template_reads_are_refused(given, message, tokenizer):
    with pytest.raises(ConfigError, match=message):
        encoding_options(parse_settings(("--template_kwargs", given)).config.data, tokenizer)
