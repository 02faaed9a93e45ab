"""The Slurm and hostfile examples in launch/, with replacements for the commands of a cluster."""

from __future__ import annotations

import os
import subprocess

import pytest

from minimind.ranks.exits import PREEMPTED
from tests.conftest import REPO


@pytest.mark.parametrize(("status", "requeued"), [(0, False), (1, False), (PREEMPTED, True)])
def test_slurm_job_is_requeued_after_preemption_only(status, requeued, tmp_path):
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


def test_deepspeed_reads_the_hostfile():
    runner = pytest.importorskip("deepspeed.launcher.runner")
    assert runner.fetch_hostfile(str(REPO / "launch/hostfile")) == {"node-1": 8, "node-2": 8}
