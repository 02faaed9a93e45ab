"""Flags for the course of a run: output folder, intervals, time limit and checkpoints."""

from __future__ import annotations

import dataclasses

from minimind.config.fields import flag


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Output folder, logging, evaluation, checkpoints and resuming. Intervals are in global steps."""

    save_dir: str = flag("out/dpo", "output folder of the run")
    run_name: str | None = flag(
        None, "name of the run in TensorBoard and in the tracker of --use_wandb; without it that of save_dir"
    )
    save_weight: str = flag("dpo", "base name of the written weights")
    save_dtype: str = flag("float16", "dtype of the .pth file", choices=("float16", "bfloat16", "float32"))
    save_interval: int = flag(100, "global steps between two checkpoints; 0: only one, at the end", low=0)
    log_interval: int = flag(100, "global steps between two logged steps", low=1)
    eval_interval: int = flag(0, "global steps between two evaluations; 0: only at the start and at the end", low=0)
    save_best: str | None = flag(
        None,
        "metric of the evaluations, e.g. eval/loss or eval/rewards/accuracies: the weights of the best evaluation are "
        "kept in save_dir/best; max: or min: before it says which direction is better, where the name does not",
    )
    early_stop: str | None = flag(
        None, "patience:N ends the run after N evaluations in a row without a better value of --save_best's metric"
    )
    guard: str = flag(
        "warn",
        "watches the curves and the held-out pairs: warn: say once what goes wrong, and what helps; stop: also end the "
        "run then; off: say nothing",
        choices=("off", "warn", "stop"),
    )
    ledger: bool = flag(
        False,
        "1: keep the log-probs, loss and margin of every pair each time it is trained on or evaluated, in "
        "save_dir/ledger (parquet), for launch/report.py",
    )
    timeout: int = flag(
        1800, "seconds without progress of any rank after which the run names the missing ranks and ends", low=1
    )
    use_wandb: bool = flag(
        False,
        "1, or the flag alone: metrics also go to SwanLab where the package swanlab is installed, as in MiniMind, else "
        "to Weights & Biases (wandb)",
        alone=True,
    )
    wandb_project: str = flag("MiniMind-DPO", "project of --use_wandb")
    keep_checkpoints: int | None = flag(
        None, "number of newest checkpoints to keep; older ones are deleted; 0: keep all", low=0
    )
    from_resume: bool = flag(
        False,
        "1: resume from the newest checkpoint in save_dir, if there is one; the number of ranks and the ZeRO stage "
        "may differ",
    )
    on_bad_checkpoint: str = flag(
        "error",
        "if the newest checkpoint is damaged: error: report the damage and stop; previous: resume from the newest "
        "checkpoint that is not damaged",
        choices=("error", "previous"),
    )
