"""The command line: MiniMind's defaults, every problem at once with its flag, and where each value came
from."""

from __future__ import annotations

import dataclasses

import pytest

from minimind.config import DEFAULT, FLAG, DPOConfig, RunConfig, build_parser, fields_of, flag, parse_settings
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
    value = parse_settings([]).values[name]
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
        ("max_steps", None),
        ("micro_batch_tokens", None),
        ("keep_checkpoints", None),
        ("eval_interval", 0),
        ("save_dtype", "float16"),
        ("empty_think_ratio", 1.0),
        ("on_bad_row", "error"),
        ("gradient_checkpointing", False),
        ("inference_rope_scaling", False),
    ],
)
def test_default_of_what_minimind_has_no_flag_for(name, value):
    assert parse_settings([]).values[name] == value


NOT_GIVEN = {
    "data_path": "",
    "eval_data_path": "",
    "tokenizer_path": "",
    "cache_dir": "",
    "deepspeed": "",
    "reference_config": "",
    "generation": "0",
    "num_attention_heads": "0",
    "num_experts_per_tok": "0",
    "rope_theta": "0",
    "max_steps": "0",
    "micro_batch_tokens": "0",
    "keep_checkpoints": "0",
}


@pytest.mark.parametrize("name", NOT_GIVEN)
def test_zero_or_an_empty_string_means_not_given(name):
    settings = parse_settings([f"--{name}={NOT_GIVEN[name]}"])
    assert settings.values[name] is None
    assert parse_settings([]).values[name] is None
    assert settings.explicit(name)


def test_exactly_these_flags_may_be_not_given():
    assert {one.name for one in fields_of(DPOConfig) if one.optional} == set(NOT_GIVEN)


@pytest.mark.parametrize("name", ["grad_clip", "save_interval", "eval_interval", "warmup_steps", "seed", "num_workers"])
def test_zero_of_other_flags_is_a_value(name):
    assert parse_settings([f"--{name}", "0"]).values[name] == 0


def test_every_field_is_a_flag_and_every_flag_a_field():
    flags = {option for action in build_parser()._actions for option in action.option_strings}
    fields = {f"--{one.name}" for one in fields_of(DPOConfig)}
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
    assert settings.values[name] == value
    assert type(settings.values[name]) is type(value)


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
    with pytest.raises(ConfigError, match=rf"^unrecognized argument: {flag}; did you mean {nearest}\?$"):
        parse_settings(arguments)


def test_a_flag_like_no_other_points_to_help():
    with pytest.raises(ConfigError, match=r"^unrecognized argument: --xyzzy; see --help$"):
        parse_settings(["--xyzzy", "1"])


def test_beginnings_of_flags_are_not_flags():
    """argparse would take --beta for --be, and silently another flag once one more begins so."""
    with pytest.raises(ConfigError, match=r"unrecognized argument: --bet; did you mean --beta\?"):
        parse_settings(["--bet", "0.2"])


def test_a_stray_value_is_said():
    with pytest.raises(ConfigError, match=r"^unrecognized argument: data\.jsonl$"):
        parse_settings(["data.jsonl"])


def test_all_problems_come_at_once():
    arguments = ["--learning_rat", "1", "--batch_size", "0", "--beta", "-1", "--epochs", "3", "--sead=4"]
    with pytest.raises(ConfigError) as caught:
        parse_settings(arguments)
    assert str(caught.value).splitlines() == [
        "4 problems:",
        "  - unrecognized argument: --learning_rat; did you mean --learning_rate?",
        "  - unrecognized argument: --sead; did you mean --seed?",
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
        ("max_steps", "1"),
        ("max_seq_len", "2"),
        ("grad_clip", "0"),
        ("seed", "0"),
        ("num_workers", "0"),
        ("save_interval", "0"),
        ("empty_think_ratio", "0"),
    ],
)
def test_the_smallest_value_is_accepted(flag, value):
    assert parse_settings([f"--{flag}", value]).values[flag] == float(value)


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


BOOLEANS = [one.name for one in fields_of(DPOConfig) if one.kind is bool]


@pytest.mark.parametrize("name", BOOLEANS)
def test_switches_take_0_and_1(name):
    assert parse_settings([f"--{name}", "1"]).values[name] is True
    assert parse_settings([f"--{name}", "0"]).values[name] is False


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
    assert set(settings.origins) == {one.name for one in fields_of(DPOConfig)}


def test_help_shows_every_flag_with_its_default(capsys):
    with pytest.raises(SystemExit) as caught:
        parse_settings(["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    for one in fields_of(DPOConfig):
        assert f"--{one.name} " in text
    assert "(default: 4e-08)" in text


def test_help_has_a_group_per_section_in_the_order_of_the_job(capsys):
    with pytest.raises(SystemExit):
        parse_settings(["--help"])
    text = capsys.readouterr().out
    places = [text.index(f"\n{name}:\n") for name in ("data", "model", "objective", "optimisation", "engine", "run")]
    assert places == sorted(places)


@pytest.mark.parametrize("arguments", [["--xyzzy", "1"], ["--batch_size", "0"], ["--batch_size", "four"]])
@pytest.mark.parametrize("agreed", [False, True])
def test_an_error_knows_whether_all_ranks_raise_it(arguments, agreed):
    with pytest.raises(ConfigError) as caught:
        parse_settings(arguments, agreed=agreed)
    assert caught.value.agreed is agreed


@dataclasses.dataclass(frozen=True, kw_only=True)
class Teacher:
    temperature: float = flag(2.0, "softens the teacher's probabilities", above=0)
    teacher_path: str | None = flag(None, "weights of the teacher")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistillationConfig:
    teacher: Teacher = dataclasses.field(default_factory=Teacher)
    run: RunConfig = dataclasses.field(default_factory=RunConfig)


def test_another_job_has_the_flags_of_its_own_sections():
    settings = parse_settings(["--temperature", "3", "--teacher_path", "", "--save_dir", "out/x"], DistillationConfig)
    expected = DistillationConfig(teacher=Teacher(temperature=3.0), run=RunConfig(save_dir="out/x"))
    assert settings.config == expected
    assert settings.origins["temperature"] == settings.origins["teacher_path"] == FLAG
    with pytest.raises(
        ConfigError, match=r"^2 problems:\n  - unrecognized argument: --beta; .*\n  - --temperature 0.0 is"
    ):
        parse_settings(["--beta", "0.1", "--temperature", "0"], DistillationConfig)
