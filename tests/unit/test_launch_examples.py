"""The examples in launch/ do what they say, as far as a machine without a cluster can tell."""

from __future__ import annotations

import os
import subprocess

import pytest

from minimind.ranks.exits import PREEMPTED
from tests.conftest import REPO


@pytest.mark.parametrize(("status", "requeued"), [(0, False), (1, False), (PREEMPTED, True)])
def test_slurm_job_goes_back_into_the_queue_when_it_was_told_to_stop(status, requeued, tmp_path):
    called, queued = tmp_path / "called", tmp_path / "queued"
    for name, body in (
        ("srun", f'echo "$SRUN_CPUS_PER_TASK cores: $@" > {called}; exit {status}'),
        ("scontrol", f'echo "$@" > {queued}'),
    ):
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    done = subprocess.run(
        ["bash", "launch/train_dpo.sbatch", "--save_dir", "a folder"],
        cwd=REPO,
        env={
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "SLURM_SUBMIT_DIR": str(REPO),
            "SLURM_JOB_ID": "7",
            "SLURM_CPUS_PER_TASK": "6",
        },
        check=False,
    )
    assert done.returncode == status
    assert queued.exists() == requeued
    if requeued:
        assert queued.read_text() == "requeue 7\n"
    command = "launch/train_dpo.py --deepspeed ds_configs/zero3.json --from_resume 1 --save_dir a folder"
    assert command in called.read_text()
    assert called.read_text().startswith("6 cores: ")


def test_hostfile_is_one_that_deepspeed_reads():
    runner = pytest.importorskip("deepspeed.launcher.runner")
    assert runner.fetch_hostfile(str(REPO / "launch/hostfile")) == {"node-1": 8, "node-2": 8}
