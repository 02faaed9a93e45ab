"""TRL's DPOTrainer on the same pairs, weights and batch, with the loss that is MiniMind's (`sigmoid_norm`).

Alone it trains bfloat16 weights with bfloat16 moments, as the Trainer does; under the launcher with DeepSpeed ZeRO-2 it
has float32 master weights and the very optimizer that this project has.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import DPOConfig, DPOTrainer

import minimind  # noqa: F401 - registers MiniMind with the Auto classes
from minimind import native
from tests.benchmarks.common import DEVICE, memory_of, now, read_task, used_gib, write_result

REPO = Path(__file__).resolve().parents[2]


class Clock(TrainerCallback):
    """Seconds of each step with its data, as the other trainers' steps have theirs, and the peak memory after it."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.last = 0.0
        self.peak_gib = 0.0

    def on_train_begin(self, args, state, control, **kwargs):
        self.last = now()

    def on_step_end(self, args, state, control, **kwargs):
        ended = now()
        self.seconds.append(ended - self.last)
        self.peak_gib = used_gib(peak=True)
        self.last = ended


class Trainer(DPOTrainer):
    """DPOTrainer that keeps the time that the reference's log-probs took in advance."""

    precompute_seconds: float | None = None

    def _precompute_ref_logps(self, *args, **kwargs):
        started = now()
        rows = super()._precompute_ref_logps(*args, **kwargs)
        self.precompute_seconds = now() - started
        return rows


def rows(path: Path) -> list[dict[str, object]]:
    """Prompt and the two answers, as TRL has them.

    Raises:
        SystemExit: a pair whose halves do not differ in the last message only, which TRL cannot be given.
    """
    out = []
    for number, line in enumerate(path.read_text(encoding="utf-8").removesuffix("\n").split("\n"), 1):
        row = json.loads(line)
        if row["chosen"][:-1] != row["rejected"][:-1]:
            raise SystemExit(f"{path}, line {number}: TRL needs pairs that differ in their last message only")
        out.append({"prompt": row["chosen"][:-1], "chosen": row["chosen"][-1:], "rejected": row["rejected"][-1:]})
    return out


def deepspeed_config() -> dict[str, object]:
    """This project's own ZeRO-2 file, without the monitor; "auto" is the Trainer's to fill."""
    config = json.loads((REPO / "ds_configs" / "zero2.json").read_text())
    del config["tensorboard"]
    return config


def main() -> None:
    before_gib = used_gib()
    task = read_task()
    if DEVICE.type == "cpu":
        native.prepare(heap=False)  # the model is this project's, with the kernels that it has for it
    precomputed = bool(task.options["precomputed"])
    tokenizer = AutoTokenizer.from_pretrained(task.path / "tokenizer")
    clock = Clock()
    # Made before the models, as transformers asks for: it tells them of DeepSpeed.
    config = DPOConfig(
        output_dir=str(task.path / "trl"),
        loss_type=["sigmoid_norm"],
        beta=0.1,
        bf16=True,
        use_cpu=DEVICE.type == "cpu",
        deepspeed=deepspeed_config() if task.options["zero2"] else None,
        learning_rate=4e-8,
        weight_decay=0.01,
        per_device_train_batch_size=task.batch_size,
        max_length=task.max_seq_len,
        max_steps=task.warmup_steps + task.steps,
        train_sampling_strategy="sequential",
        gradient_checkpointing=bool(task.options["gradient_checkpointing"]),
        precompute_ref_log_probs=precomputed,
        save_strategy="no",
        report_to=[],
        dataloader_num_workers=0,
        logging_steps=1000,
    )
    models = [
        AutoModelForCausalLM.from_pretrained(task.path / "model", dtype=torch.bfloat16)
        for _ in range(1 if precomputed else 2)
    ]
    trainer = Trainer(
        model=models[0],
        # With its log-probs in advance, TRL needs no second model and keeps none.
        ref_model=None if precomputed else models[1],
        args=config,
        train_dataset=Dataset.from_list(rows(task.path / "pairs.jsonl")),
        processing_class=tokenizer,
        callbacks=[clock],
    )
    trainer.train()
    if task.options["zero2"]:
        # use_cpu and DeepSpeed are seldom met together; the Trainer must not have gone on without.
        assert trainer.model_wrapped.zero_optimization_stage() == 2
    optimizer = trainer.optimizer
    while hasattr(optimizer, "optimizer"):  # what accelerate and DeepSpeed wrap
        optimizer = optimizer.optimizer
    assert isinstance(optimizer, torch.optim.AdamW)
    memory = memory_of(clock.peak_gib, before_gib, models, optimizer)
    write_result(task, clock.seconds[task.warmup_steps :], memory, before_seconds=trainer.precompute_seconds)


if __name__ == "__main__":
    main()
