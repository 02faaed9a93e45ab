"""Start weights: the path that a flag means, fresh weights, and sizes that come from the weights."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from transformers import Qwen3Config

from minimind import demo
from minimind.config import WEIGHTS, parse_settings
from minimind.errors import ConfigError, WeightsError
from minimind.model.configuration import MiniMindConfig
from minimind.training.setup.start_weights import (
    defaults_of,
    open_start_weights,
    weights_name,
    weights_path,
    with_model_sizes,
)


def config(*flags):
    return parse_settings(flags).config


def test_an_existing_path_is_taken_as_it_is(tmp_path):
    path = tmp_path / "mine.pth"
    path.touch()
    assert weights_path(config("--from_weight", str(path))) == path


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        ((), "full_sft_512.pth"),
        (("--generation", "3"), "full_sft_768.pth"),
        (("--use_moe", "1", "--hidden_size", "64"), "full_sft_64_moe.pth"),
    ],
)
def test_a_short_name_is_a_file_in_save_dir(tmp_path, flags, name):
    assert weights_path(config("--save_dir", str(tmp_path), *flags)) == tmp_path / name


def test_written_weights_are_named_as_minimind_names_them():
    assert weights_name(config()) == "dpo_512"
    assert weights_name(config("--save_weight", "mine", "--hidden_size", "64", "--use_moe", "1")) == "mine_64_moe"


def test_missing_weights_name_both_places(tmp_path):
    with pytest.raises(WeightsError) as caught:
        open_start_weights(config("--from_weight", "nowhere", "--save_dir", str(tmp_path)))
    assert "--from_weight nowhere: no such file or folder" in str(caught.value)
    assert str(tmp_path / "nowhere_512.pth") in str(caught.value)
    assert "does; see" not in str(caught.value)
    (tmp_path / "nowhere_768.pth").touch()
    with pytest.raises(WeightsError, match=r"nowhere_768.pth does; see --hidden_size, --use_moe and --generation"):
        open_start_weights(config("--from_weight", "nowhere", "--save_dir", str(tmp_path)))


def test_fresh_weights_have_the_sizes_of_the_flags_and_generation_2():
    source = open_start_weights(config("--from_weight", "none", "--hidden_size", "64", "--num_attention_heads", "4"))
    assert (source.config.generation, source.config.hidden_size, source.config.num_attention_heads) == (2, 64, 4)
    three = open_start_weights(config("--from_weight", "none", "--generation", "3"))
    assert three.config.generation == 3


def test_a_fresh_model_that_cannot_exist_is_refused():
    with pytest.raises(ConfigError, match="--from_weight none: "):
        open_start_weights(config("--from_weight", "none", "--hidden_size", "65", "--num_attention_heads", "7"))


def test_a_file_is_opened_with_its_own_sizes():
    source = open_start_weights(config("--from_weight", str(demo.WEIGHT_PATH)))
    assert (source.config.hidden_size, source.config.generation) == (96, 3)


def test_sizes_come_from_the_weights_and_flags_stay():
    source = SimpleNamespace(config=MiniMindConfig(generation=3, hidden_size=96, num_hidden_layers=3))
    settings = with_model_sizes(parse_settings(["--hidden_size", "32"]), source)
    assert settings.config.model.num_hidden_layers == 3
    assert settings.origins["num_hidden_layers"] == WEIGHTS
    assert (settings.config.model.hidden_size, settings.origins["hidden_size"]) == (32, "flag")
    fresh = with_model_sizes(parse_settings(["--from_weight", "none"]), source)
    assert fresh.origins["num_hidden_layers"] == "default"


def test_the_size_of_fresh_weights_says_which_generation_it_is_of():
    given = parse_settings(["--from_weight", "none", "--generation", "3"])
    source = open_start_weights(given.config)
    settings = with_model_sizes(given, source)
    assert (settings.config.model.hidden_size, settings.origins["hidden_size"]) == (768, "generation 3")
    assert defaults_of(source).origin == "generation 3"


@pytest.mark.parametrize(
    ("model", "origin"),
    [
        (MiniMindConfig(generation=2), "generation 2"),
        (MiniMindConfig(generation=3), "generation 3"),
        (Qwen3Config(), "Hugging Face model"),
    ],
)
def test_defaults_follow_the_weights(model, origin):
    assert defaults_of(SimpleNamespace(config=model)).origin == origin
