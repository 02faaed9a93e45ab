"""Runs of a sweep as other tests need them: their plans, their folders."""

from __future__ import annotations

import json
from pathlib import Path

from minimind.sweep.flags import read_flags
from minimind.sweep.plan import RunPlan, plan_runs, write_record

FLAGS = ("--deepspeed", "ds_configs/zero2.json", "--data_path", "pairs.jsonl")


def plans(folder: Path, *flags: str) -> list[RunPlan]:
    return plan_runs(read_flags([*FLAGS, "--save_dir", str(folder), *flags]))


def write_run(plan: RunPlan, status: str, *entries: dict, exit_status: int | None = None, tensorboard=True) -> None:
    """A run's folder with the sweep's record and these lines of metrics."""
    write_record(plan, status, exit_status)
    text = "".join(f"{json.dumps(entry)}\n" for entry in entries)
    (plan.folder / "metrics.jsonl").write_text(text, encoding="utf-8")
    section = {"enabled": tensorboard, "output_path": str(plan.folder / "tensorboard"), "job_name": plan.name}
    (plan.folder / "ds_config.json").write_text(json.dumps({"tensorboard": section}), encoding="utf-8")
    if tensorboard:
        (plan.folder / "tensorboard" / plan.name).mkdir(parents=True, exist_ok=True)


def trained(step: int, loss: float) -> dict:
    return {"step": step, "loss": loss, "rewards/accuracies": 0.5, "rewards/margins": 0.01}


def evaluated(step: int, accuracy: float, margin: float = 0.1, loss: float = 0.6) -> dict:
    return {
        "step": step,
        "eval/loss": loss,
        "eval/rewards/accuracies": accuracy,
        "eval/rewards/margins": margin,
    }
