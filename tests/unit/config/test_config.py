"""The command line: MiniMind's defaults, every problem at once with its flag, and where each value came
from."""

from __future__ import annotations

import dataclasses

import pytest

from minimind.config import DEEPSPEED_FILE, DEFAULT, FLAG, WEIGHTS, TrainConfig, build_parser, parse_settings
from minimind.errors import ConfigError

# MiniMind2's train_dpo.py. (The newest has a beta of 0.15, and a hidden_size of 768, which the weights tell
# here.)
MINIMIND_DEFAULTS = {
    "save_weight": "dpo",
    "epochs": 1,
    "batch_size": 4,
    "learning_rate": 4e-8,
    "dtype": "bfloat16",
    "num_workers": 8,
    "accumulation_steps": 1,
    "grad_clip": 1.0,
    "log_interval": 100,
    "save_interval": 100,
    "hidden_size": 512,
    "num_hidden_layers": 8,
    "max_seq_len": 1024,
    "use_moe": False,
    "from_weight": "full_sft",
    "from_resume": False,
    "beta": 0.1,
    "use_compile": False,
}


@pytest.mark.parametrize("name", MINIMIND_DEFAULTS)
def test_default_is_minimind(name):
    value = getattr(parse_settings([]).config, name)
    assert value == MINIMIND_DEFAULTS[name]
    assert type(value) is type(MINIMIND_DEFAULTS[name])


# Without them a run is MiniMind2's: means over tokens, a fresh order every epoch, no warm-up, float16 files.
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("average_log_prob", True),
        ("shuffle", True),
        ("seed", 42),
        ("warmup_steps", 0),
        ("max_steps", 0),
        ("eval_interval", 0),
        ("save_dtype", "float16"),
        ("empty_think_ratio", 1.0),
        ("on_bad_row", "error"),
        ("gradient_checkpointing", False),
        ("inference_rope_scaling", False),
    ],
)
def test_default_of_what_minimind_has_no_flag_for(name, value):
    assert getattr(parse_settings([]).config, name) == value


def test_sizes_that_are_read_elsewhere_are_not_given():
    config = parse_settings([]).config
    empty = ("data_path", "eval_data_path", "tokenizer_path", "cache_dir", "deepspeed", "reference_config")
    assert [getattr(config, name) for name in empty] == [""] * 6
    zero = ("generation", "num_attention_heads", "num_experts_per_tok", "rope_theta")
    assert [getattr(config, name) for name in zero] == [0] * 4


def test_every_field_is_a_flag_and_every_flag_a_field():
    flags = {option for action in build_parser()._actions for option in action.option_strings}
    fields = {f"--{field.name}" for field in dataclasses.fields(TrainConfig)}
    # --local_rank is the launcher's.
    assert flags - fields == {"-h", "--help", "--local_rank"}
    assert fields <= flags


@pytest.mark.parametrize(
    ("arguments", "name", "value"),
    [
        (["--batch_size", "16"], "batch_size", 16),
        (["--batch_size=16"], "batch_size", 16),
        (["--learning_rate", "5e-7"], "learning_rate", 5e-7),
        (["--learning_rate", "1"], "learning_rate", 1.0),
        (["--data_path", "some where/a.jsonl"], "data_path", "some where/a.jsonl"),
        (["--use_moe", "1"], "use_moe", True),
        (["--shuffle", "0"], "shuffle", False),
        (["--dtype", "float32"], "dtype", "float32"),
        (["--generation", "3"], "generation", 3),
        (["--batch_size", "2", "--batch_size", "8"], "batch_size", 8),
    ],
)
def test_a_flag_sets_its_value(arguments, name, value):
    settings = parse_settings(arguments)
    assert getattr(settings.config, name) == value
    assert type(getattr(settings.config, name)) is type(value)


def test_the_launcher_local_rank_is_taken_and_ignored():
    assert parse_settings(["--local_rank", "3"]) == parse_settings([])
    assert parse_settings(["--local_rank=3"]) == parse_settings([])


@pytest.mark.parametrize(
    ("flag", "nearest"),
    [
        ("--learning_rat", "--learning_rate"),
        ("--learning-rate", "--learning_rate"),
        ("--lerning_rate", "--learning_rate"),
        ("--batchsize", "--batch_size"),
        ("--accumulation_step", "--accumulation_steps"),
        ("--max_sequence_len", "--max_seq_len"),
        ("--gradient_accumulation_steps", "--accumulation_steps"),
    ],
)
@pytest.mark.parametrize("joined", [True, False])
def test_a_mistyped_flag_names_the_nearest(flag, nearest, joined):
    arguments = [f"{flag}=4"] if joined else [flag, "4"]
    with pytest.raises(ConfigError, match=rf"^unknown flag {flag}; did you mean {nearest}\?$"):
        parse_settings(arguments)


def test_a_flag_like_no_other_points_to_help():
    with pytest.raises(ConfigError, match=r"^unknown flag --xyzzy; see --help$"):
        parse_settings(["--xyzzy", "1"])


def test_beginnings_of_flags_are_not_flags():
    """argparse would take --beta for --be, and silently another flag once one more begins so."""
    with pytest.raises(ConfigError, match=r"unknown flag --bet; did you mean --beta\?"):
        parse_settings(["--bet", "0.2"])


def test_a_stray_value_is_said():
    with pytest.raises(ConfigError, match=r"'data\.jsonl' belongs to no flag"):
        parse_settings(["data.jsonl"])


def test_all_problems_come_at_once():
    arguments = ["--learning_rat", "1", "--batch_size", "0", "--beta", "-1", "--epochs", "3", "--sead=4"]
    with pytest.raises(ConfigError) as caught:
        parse_settings(arguments)
    assert str(caught.value).splitlines() == [
        "4 problems:",
        "  - unknown flag --learning_rat; did you mean --learning_rate?",
        "  - unknown flag --sead; did you mean --seed?",
        "  - --batch_size 0 is below 1",
        "  - --beta -1.0 is not above 0",
    ]


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("batch_size", "0", "is below 1"),
        ("batch_size", "-2", "is below 1"),
        ("accumulation_steps", "0", "is below 1"),
        ("epochs", "0", "is below 1"),
        ("max_steps", "-1", "is below 0"),
        ("max_seq_len", "1", "is below 2"),
        ("learning_rate", "0", "is not above 0"),
        ("learning_rate", "nan", "is not a finite number"),
        ("learning_rate", "inf", "is not a finite number"),
        ("beta", "0", "is not above 0"),
        ("grad_clip", "-0.5", "is below 0"),
        ("warmup_steps", "-1", "is below 0"),
        ("seed", "-1", "is below 0"),
        ("num_workers", "-1", "is below 0"),
        ("log_interval", "0", "is below 1"),
        ("save_interval", "-1", "is below 0"),
        ("hidden_size", "0", "is below 1"),
        ("empty_think_ratio", "-0.1", "is below 0"),
    ],
)
def test_a_value_out_of_range_is_said_with_its_flag(flag, value, message):
    with pytest.raises(ConfigError, match=rf"^--{flag} \S+ {message}"):
        parse_settings([f"--{flag}", value])


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("batch_size", "1"),
        ("max_steps", "0"),
        ("max_seq_len", "2"),
        ("grad_clip", "0"),
        ("seed", "0"),
        ("num_workers", "0"),
        ("save_interval", "0"),
        ("empty_think_ratio", "0"),
    ],
)
def test_the_smallest_value_is_accepted(flag, value):
    assert getattr(parse_settings([f"--{flag}", value]).config, flag) == float(value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batch_size", "four"], "--batch_size: invalid int value: 'four'"),
        (["--batch_size", "1.5"], "--batch_size: invalid int value: '1.5'"),
        (["--learning_rate", "fast"], "--learning_rate: invalid float value: 'fast'"),
        (["--dtype", "fp8"], "--dtype: invalid choice: 'fp8'"),
        (["--generation", "1"], "--generation: invalid choice: 1"),
        (["--on_bad_row", "ignore"], "--on_bad_row: invalid choice: 'ignore'"),
        (["--batch_size"], "--batch_size: expected one argument"),
    ],
)
def test_a_value_of_the_wrong_kind_is_said_with_its_flag(arguments, message):
    with pytest.raises(ConfigError, match=message):
        parse_settings(arguments)


BOOLEANS = [field.name for field in dataclasses.fields(TrainConfig) if isinstance(field.default, bool)]


@pytest.mark.parametrize("name", BOOLEANS)
def test_switches_take_0_and_1(name):
    assert getattr(parse_settings([f"--{name}", "1"]).config, name) is True
    assert getattr(parse_settings([f"--{name}", "0"]).config, name) is False


@pytest.mark.parametrize("value", ["2", "true", "yes", "", "-1"])
def test_switches_take_nothing_else(value):
    """Above all not `--use_moe False`, which bool() would make True."""
    with pytest.raises(ConfigError, match=f"--use_moe: '{value}' is neither 0 nor 1"):
        parse_settings([f"--use_moe={value}"])


def test_origins_tell_flags_from_defaults():
    settings = parse_settings(["--batch_size", "4", "--use_moe", "0"])
    # Given explicitly, although both are the defaults.
    assert settings.origins["batch_size"] == settings.origins["use_moe"] == FLAG
    assert settings.origins["epochs"] == DEFAULT
    assert settings.explicit("batch_size")
    assert not settings.explicit("epochs")
    assert set(settings.origins) == {field.name for field in dataclasses.fields(TrainConfig)}


def test_values_from_elsewhere_replace_all():
    settings = parse_settings(["--hidden_size", "64"]).with_values({"hidden_size": 768}, WEIGHTS)
    assert settings.config.hidden_size == 768
    assert settings.origins["hidden_size"] == WEIGHTS


def test_defaults_from_elsewhere_leave_flags_alone():
    given = parse_settings(["--batch_size", "2"])
    settings = given.with_defaults({"batch_size": 8, "grad_clip": 0.5}, DEEPSPEED_FILE)
    assert settings.config.batch_size == 2
    assert settings.config.grad_clip == 0.5
    assert settings.origins["batch_size"] == FLAG
    assert settings.origins["grad_clip"] == DEEPSPEED_FILE
    # What was there is not changed.
    assert given.config.grad_clip == 1.0
    assert given.origins["grad_clip"] == DEFAULT


def test_help_shows_every_flag_with_its_default(capsys):
    with pytest.raises(SystemExit) as caught:
        parse_settings(["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    for field in dataclasses.fields(TrainConfig):
        assert f"--{field.name} " in text
    assert "(default: 4e-08)" in text
