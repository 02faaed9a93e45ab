"""The command line that is generated from a job's configuration: values, origins, errors and help.

The defaults and ranges of each section are in the section's own test file.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import pytest

from minimind.config import DEFAULT, FLAG, DPOConfig, RunConfig, build_parser, fields_of, flag, parse_settings
from minimind.errors import ConfigError

# Flags whose value may be None, and what stands for None on the command line.
NOT_GIVEN = {
    "tokenizer_path": "",
    "dataset_info": "",
    "chat_template": "",
    "template_kwargs": "",
    "cache_dir": "",
    "deepspeed": "",
    "reference_config": "",
    "reference_weight": "",
    "reference_update": "",
    "disable_patches": "",
    "device": "",
    "limit": "0",
    "generation": "0",
    "num_attention_heads": "0",
    "num_experts_per_tok": "0",
    "rope_theta": "0",
    "max_steps": "0",
    "warmup_ratio": "0",
    "micro_batch_tokens": "0",
    "keep_checkpoints": "0",
    "save_best": "",
    "early_stop": "",
    "sample_prompts": "",
    "run_name": "",
    "loss_options": "",
    "lora_rank": "0",
    "from_adapter": "",
}


@pytest.mark.parametrize("name", NOT_GIVEN)
def test_zero_or_an_empty_string_becomes_none(name):
    settings = parse_settings([f"--{name}={NOT_GIVEN[name]}"])
    assert settings.values[name] is None
    assert parse_settings([]).values[name] is None
    assert settings.explicit(name)


# Flags that may be None, and for which 0 is a value.
ZERO_IS_A_VALUE = ["router_aux_loss_coef", "filter_score_gap", "average_log_prob", "label_smoothing"]


def test_no_other_flag_may_be_none():
    # These have no 0: they must be above.
    above = {"beta", "decay_ratio", "lora_alpha"}
    assert {item.name for item in fields_of(DPOConfig) if item.optional} == {*NOT_GIVEN, *ZERO_IS_A_VALUE, *above}


@pytest.mark.parametrize(
    "name",
    [*ZERO_IS_A_VALUE, "grad_clip", "save_interval", "eval_interval", "warmup_steps", "seed", "num_workers"],
)
def test_zero_stays_zero_for_other_flags(name):
    assert parse_settings([f"--{name}", "0"]).values[name] == 0


@pytest.mark.parametrize(
    ("given", "value"),
    [((), False), (("--use_wandb",), True), (("--use_wandb", "1"), True), (("--use_wandb=0",), False)],
)
def test_a_switch_of_minimind_s_may_stand_alone(given, value):
    assert parse_settings([*given, "--beta", "0.2"]).config.run.use_wandb is value


def test_other_switches_have_a_value():
    with pytest.raises(ConfigError, match="--use_moe: expected one argument"):
        parse_settings(["--use_moe", "--beta", "0.2"])


def test_the_parser_has_exactly_the_flags_of_the_job():
    flags = {option for action in build_parser()._actions for option in action.option_strings}
    fields = {f"--{item.name}" for item in fields_of(DPOConfig)}
    # The DeepSpeed launcher adds --local_rank.
    assert flags - fields == {"-h", "--help", "--local_rank"}
    assert fields <= flags


@pytest.mark.parametrize(
    ("arguments", "name", "value"),
    [
        (["--batch_size", "16"], "batch_size", 16),
        (["--batch_size=16"], "batch_size", 16),
        (["--learning_rate", "5e-7"], "learning_rate", 5e-7),
        (["--learning_rate", "1"], "learning_rate", 1.0),
        (["--data_path", "some where/a.jsonl"], "data_path", ("some where/a.jsonl",)),
        (["--data_path", "a:2", "", "b", "--seed", "1", "--data_path", "c"], "data_path", ("a:2", "b", "c")),
        (["--data_path", ""], "data_path", ()),
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


def test_local_rank_from_the_launcher_is_accepted_and_ignored():
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
def test_an_unknown_flag_gets_the_most_similar_flag_as_a_hint(flag, nearest, joined):
    arguments = [f"{flag}=4"] if joined else [flag, "4"]
    with pytest.raises(ConfigError, match=rf"^unrecognized argument: {flag}; did you mean {nearest}\?$"):
        parse_settings(arguments)


def test_an_unknown_flag_without_a_similar_one_points_to_help():
    with pytest.raises(ConfigError, match=r"^unrecognized argument: --xyzzy; see --help$"):
        parse_settings(["--xyzzy", "1"])


def test_abbreviated_flags_are_refused():
    """By default argparse accepts --bet for --beta, until another flag begins with --bet."""
    with pytest.raises(ConfigError, match=r"unrecognized argument: --bet; did you mean --beta\?"):
        parse_settings(["--bet", "0.2"])


def test_a_value_without_a_flag_is_refused():
    with pytest.raises(ConfigError, match=r"^unrecognized argument: data\.jsonl$"):
        parse_settings(["data.jsonl"])


def test_all_problems_are_in_one_error():
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
        ("batch_size", "0", "--batch_size 0 is below 1"),
        ("learning_rate", "0", "--learning_rate 0.0 is not above 0"),
        ("learning_rate", "nan", "--learning_rate nan is not a finite number"),
        ("rope_theta", "-inf", "--rope_theta -inf is not a finite number"),
    ],
)
def test_a_value_out_of_range_is_refused(flag, value, message):
    with pytest.raises(ConfigError) as caught:
        parse_settings([f"--{flag}={value}"])
    assert str(caught.value) == message


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
def test_a_value_of_the_wrong_type_is_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        parse_settings(arguments)


BOOLEANS = [item.name for item in fields_of(DPOConfig) if item.kind is bool]


@pytest.mark.parametrize("name", BOOLEANS)
def test_boolean_flags_accept_0_and_1(name):
    assert parse_settings([f"--{name}", "1"]).values[name] is True
    assert parse_settings([f"--{name}", "0"]).values[name] is False


@pytest.mark.parametrize("value", ["2", "true", "False", "yes", "", "-1"])
def test_boolean_flags_accept_nothing_else(value):
    """bool("False") is True, so `--use_moe False` must not be converted with bool."""
    with pytest.raises(ConfigError, match=f"--use_moe: '{value}' is neither 0 nor 1"):
        parse_settings([f"--use_moe={value}"])


def test_the_origin_of_a_value_is_flag_or_default():
    settings = parse_settings(["--batch_size", "4", "--use_moe", "0"])
    # Both equal the defaults, but the user gave them.
    assert settings.origins["batch_size"] == settings.origins["use_moe"] == FLAG
    assert settings.origins["epochs"] == DEFAULT
    assert settings.explicit("batch_size")
    assert not settings.explicit("epochs")
    assert set(settings.origins) == {item.name for item in fields_of(DPOConfig)}


def test_help_lists_every_flag(capsys):
    with pytest.raises(SystemExit) as caught:
        parse_settings(["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    for item in fields_of(DPOConfig):
        assert f"--{item.name} " in text
    assert "(default: 4e-08)" in text


def test_help_has_one_group_per_section_in_order(capsys):
    with pytest.raises(SystemExit):
        parse_settings(["--help"])
    text = capsys.readouterr().out
    places = [text.index(f"\n{name}:\n") for name in ("data", "model", "objective", "optimisation", "engine", "run")]
    assert places == sorted(places)


@pytest.mark.parametrize("arguments", [["--xyzzy", "1"], ["--batch_size", "0"], ["--batch_size", "four"]])
@pytest.mark.parametrize("agreed", [False, True])
def test_errors_carry_agreed(arguments, agreed):
    with pytest.raises(ConfigError) as caught:
        parse_settings(arguments, agreed=agreed)
    assert caught.value.agreed is agreed


@dataclasses.dataclass(frozen=True, kw_only=True)
class Teacher:
    temperature: float = flag(2.0, "softens the teacher's probabilities", above=0)
    teacher_path: str | None = flag(None, "weights of the teacher")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistillationConfig:
    script: ClassVar[str] = "launch/distil.py"
    description: ClassVar[str] = "Distillation."

    teacher: Teacher = dataclasses.field(default_factory=Teacher)
    run: RunConfig = dataclasses.field(default_factory=RunConfig)


def test_another_job_gets_the_flags_of_its_own_sections():
    settings = parse_settings(["--temperature", "3", "--teacher_path", "", "--save_dir", "out/x"], DistillationConfig)
    expected = DistillationConfig(teacher=Teacher(temperature=3.0), run=RunConfig(save_dir="out/x"))
    assert settings.config == expected
    assert settings.origins["temperature"] == settings.origins["teacher_path"] == FLAG
    with pytest.raises(ConfigError, match=r"^2 problems:\n  - .*: --beta; .*\n.* 0\.0 is not above 0$"):
        parse_settings(["--beta", "0.1", "--temperature", "0"], DistillationConfig)


def test_help_names_the_script_of_the_job(capsys):
    with pytest.raises(SystemExit):
        parse_settings(["--help"], DistillationConfig)
    text = capsys.readouterr().out
    assert text.startswith("usage: deepspeed launch/distil.py ")
    assert "Distillation." in text
