"""TRL's DPOTrainer on the same pairs, weights and batch, with the loss that is MiniMind's (`sigmoid_norm`)."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import DPOConfig, DPOTrainer

import minimind  # noqa: F401 - registers MiniMind with the Auto classes

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from tests.benchmarks.common import read_task, write_result


class Clock(TrainerCallback):
    """Seconds of each step."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.started = 0.0

    def on_step_begin(self, args, state, control, **kwargs):
        self.started = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        self.seconds.append(time.perf_counter() - self.started)


def rows(path: Path) -> list[dict[str, object]]:
    """Prompt and the two answers, as TRL has them."""
    out = []
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        out.append({"prompt": row["chosen"][:-1], "chosen": row["chosen"][-1:], "rejected": row["rejected"][-1:]})
    return out


def main() -> None:
    task = read_task(sys.argv[1])
    tokenizer = AutoTokenizer.from_pretrained(task.path / "tokenizer")
    model, reference = (
        AutoModelForCausalLM.from_pretrained(task.path / "model", dtype=torch.bfloat16) for _ in range(2)
    )
    clock = Clock()
    config = DPOConfig(
        output_dir=str(task.path / "trl"),
        loss_type=["sigmoid_norm"],
        beta=0.1,
        bf16=True,
        use_cpu=not torch.cuda.is_available(),
        learning_rate=4e-8,
        per_device_train_batch_size=task.batch_size,
        max_length=task.max_seq_len,
        max_steps=task.warmup_steps + task.steps,
        gradient_checkpointing=bool(task.options["gradient_checkpointing"]),
        precompute_ref_log_probs=bool(task.options["precomputed"]),
        save_strategy="no",
        report_to=[],
        dataloader_num_workers=0,
        logging_steps=1000,
    )
    trainer = DPOTrainer(
        model=model,
        ref_model=reference,
        args=config,
        train_dataset=Dataset.from_list(rows(task.path / "pairs.jsonl")),
        processing_class=tokenizer,
        callbacks=[clock],
    )
    trainer.train()
    write_result(task, clock.seconds[task.warmup_steps :])


if __name__ == "__main__":
    main()
