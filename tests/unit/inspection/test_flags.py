"""Flags of the script: its own, those of training, and the ranks that they plan."""

from __future__ import annotations

import dataclasses

import pytest

from minimind.errors import ConfigError, LaunchError
from minimind.inspection.flags import ranks_of, read_flags


def test_own_flags_and_those_of_training():
    own, settings = read_flags(
        "--data_path a --beta 0.3 --eval_share 0.1 --gpu_memory 80GiB --tokens_per_second 1e3 --out x".split()
    )
    assert (own.eval_share, own.gpu_memory, own.tokens_per_second, own.out) == (0.1, 80 * 2**30, 1000, "x")
    assert settings.config.objective.beta == 0.3
    assert read_flags([])[0].out == "out/prepare"


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        ("--data_path a --eval_share 1", "--eval_share 1 is not between 0 and 1"),
        ("--data_path a --eval_share 0", "--eval_share 0 is not between 0 and 1"),
        ("--eval_share 0.1", "--eval_share needs --data_path"),
        ("--data_path a --eval_share 0.1 --eval_data_path b", "drop one of them"),
        ("--tokens_per_second 0", "--tokens_per_second 0 is not above 0"),
        ("--tokens_per_second nan", "--tokens_per_second nan is not above 0"),
        ("--nodes 0 --gpus_per_node -1", "2 problems"),
        ("--gpu_memory 80", "expected a size with a unit"),
        ("--eval_shar 0.1", "did you mean --eval_share?"),
        ("--max_seq_length 5", "did you mean --max_seq_len?"),
    ],
)
def test_wrong_flags(flags, problem):
    with pytest.raises(ConfigError) as raised:
        read_flags(flags.split())
    assert problem in str(raised.value)


LAUNCHED = {"RANK": "0", "WORLD_SIZE": "8", "MASTER_ADDR": "a", "MASTER_PORT": "1"}


@pytest.mark.parametrize(
    ("flags", "environ", "expected"),
    [
        ("", {}, (1, 1)),
        ("--gpus_per_node 4", {}, (1, 4)),
        ("--nodes 2 --gpus_per_node 4", {}, (2, 4)),
        ("", LAUNCHED, (1, 8)),
        ("", {**LAUNCHED, "CROSS_SIZE": "2"}, (2, 4)),
        ("--gpus_per_node 2", LAUNCHED, (1, 2)),
    ],
)
def test_ranks(flags, environ, expected):
    own, _ = read_flags(flags.split())
    assert ranks_of(own, environ) == expected


def test_an_incomplete_launch_is_an_error():
    own, _ = read_flags([])
    with pytest.raises(LaunchError, match="MASTER_ADDR"):
        ranks_of(dataclasses.replace(own, nodes=None), {"RANK": "0"})


@pytest.mark.parametrize(("job", "limit"), [("dpo", 1024), ("sft", 768), ("pretrain", 340)])
def test_each_job_has_its_own_flags_and_defaults(job, limit):
    own, settings = read_flags(["--job", job, "--data_path", "rows.jsonl"])
    assert not hasattr(own, "job")
    assert (settings.config.name, settings.config.data.max_seq_len) == (job, limit)


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        ("--job sft --beta 0.1", "unrecognized argument: --beta"),
        ("--job pretrain --chat_template x", "unrecognized argument: --chat_template"),
        ("--job sft --eval_share 0.1", "--eval_share needs --data_path"),
        ("--job pretrain --data_path a --max_steps 5 --streaming 1", "--streaming 1: a report is about all rows"),
    ],
)
def test_wrong_flags_of_other_jobs(flags, problem):
    with pytest.raises(ConfigError) as raised:
        read_flags(flags.split())
    assert problem in str(raised.value)
    assert "demo" not in str(raised.value)
