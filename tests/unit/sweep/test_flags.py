"""The command line of a sweep: what separates values, what is passed to the launcher, what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from minimind.config import DPOConfig, fields_of
from minimind.errors import ConfigError
from minimind.sweep.flags import read_flags, split_values

FLAGS = {flag.name: flag for flag in fields_of(DPOConfig)}
FILE = ("--deepspeed", "ds_configs/zero2.json")


def values(name, *times):
    return [" ".join(value) for value in split_values(FLAGS[name], [time.split("|") for time in times])]


@pytest.mark.parametrize(
    ("name", "times", "expected"),
    [
        ("beta", ["0.1"], ["0.1"]),
        ("beta", ["0.05,0.1, 0.3"], ["0.05", "0.1", "0.3"]),
        ("loss", ["sigmoid,ipo"], ["sigmoid", "ipo"]),
        # Each time that the flag is given is one value, commas and all.
        ("loss", ["sigmoid:0.8,sft:1", "ipo"], ["sigmoid:0.8,sft:1", "ipo"]),
        ("loss", ["sigmoid:0.8,sft:1;ipo"], ["sigmoid:0.8,sft:1", "ipo"]),
        ("loss", ["sigmoid:0.8,sft:1;"], ["sigmoid:0.8,sft:1"]),
        ("loss_options", ['{"tau": 0.05, "gamma": 1}'], ['{"tau": 0.05, "gamma": 1}']),
        ("loss_options", ['{"tau": 0.05};{"tau": 0.1}'], ['{"tau": 0.05}', '{"tau": 0.1}']),
        ("reference_update", ["soft:0.6@64,hard@512"], ["soft:0.6@64", "hard@512"]),
        # Files of one run, and two mixes of files.
        ("data_path", ["a.jsonl|b,c.jsonl:2"], ["a.jsonl b,c.jsonl:2"]),
        ("data_path", ["a.jsonl|b.jsonl;c.jsonl"], ["a.jsonl b.jsonl", "c.jsonl"]),
        ("data_path", ["a.jsonl", "b.jsonl"], ["a.jsonl b.jsonl"]),
    ],
)
def test_values(name, times, expected):
    assert values(name, *times) == expected


@pytest.mark.parametrize(
    ("name", "times", "message"),
    [
        ("loss", ["sigmoid:0.8,sft:1"], r"write 'sigmoid:0\.8,sft:1;' for one value, or 'sigmoid:0\.8;sft:1' for 2"),
        ("disable_patches", ["a,b"], r"a comma may separate values of the sweep or belong to one value"),
        ("beta", ["0.1,,0.3"], r"--beta: one of its values is empty"),
        ("beta", ["0.1,0.3,0.1"], r"--beta 0\.1: the value is there twice"),
    ],
)
def test_what_could_mean_two_things_is_refused(name, times, message):
    with pytest.raises(ConfigError, match=message):
        values(name, *times)


def test_a_file_with_a_comma_in_its_name_is_not_split_silently(tmp_path):
    path = tmp_path / "a,b.pth"
    path.touch()
    with pytest.raises(ConfigError, match="a comma may separate"):
        values("from_weight", str(path))
    assert values("from_weight", f"{path};") == [str(path)]


def test_flags_of_the_launcher_are_passed_on():
    more = ("--num_gpus", "2", "--hostfile=hosts", "--no_ssh")
    found = read_flags([*FILE, *more, "--beta", "0.1", "--save_dir", "out/x"])
    assert found.launcher == ("--hostfile=hosts", "--num_gpus=2", "--no_ssh")
    assert found.save_dir == Path("out/x")
    assert found.values == {"deepspeed": (("ds_configs/zero2.json",),), "beta": (("0.1",),)}
    assert read_flags(FILE).save_dir == Path("out/sweep")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--bata", "0.1"), "unrecognized argument: --bata; did you mean --beta?"),
        (("--num_gpu", "2"), "unrecognized argument: --num_gpu; did you mean --num_gpus?"),
        (("0.3",), "unrecognized argument: 0.3"),
        (("--from_resume", "1"), "--from_resume: drop it: stopped runs are always resumed"),
        (("--save_dir", "a,b"), "--save_dir has several values: it is the folder of the sweep"),
    ],
)
def test_wrong_flags_are_refused(flags, message):
    with pytest.raises(ConfigError) as caught:
        read_flags([*FILE, *flags])
    assert message in str(caught.value)


def test_the_deepspeed_file_must_be_given():
    with pytest.raises(ConfigError, match="--deepspeed FILE is missing"):
        read_flags(["--beta", "0.1"])
