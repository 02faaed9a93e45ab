"""TRL's DPOTrainer on the same pairs, weights and batch, with MiniMind's loss (`sigmoid_norm`).

Under plain python it trains bfloat16 weights with bfloat16 moments, as the Trainer does. Under the launcher with
DeepSpeed ZeRO-2 it has float32 weights in the optimizer, and the same optimizer as this project.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import DPOConfig, DPOTrainer

import minimind  # noqa: F401 - registers MiniMind with the Auto classes
from minimind import native
from tests.benchmarks.common import DEVICE, memory_of, now, read_task, used_gib, write_result

REPO = Path(__file__).resolve().parents[2]


class Clock(TrainerCallback):
    """Records the seconds of each step, data included as for the other trainers, and the peak memory after it."""

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
    """DPOTrainer that records the time of precomputing the reference's log-probs."""

    precompute_seconds: float | None = None

    def _precompute_ref_logps(self, *args, **kwargs):
        started = now()
        rows = super()._precompute_ref_logps(*args, **kwargs)
        self.precompute_seconds = now() - started
        return rows


def rows(path: Path) -> list[dict[str, object]]:
    """Rows in TRL's form: the prompt and two answers.

    Raises:
        SystemExit: the halves of a pair differ in more than the last message, which TRL cannot express.
    """
    out = []
    for number, line in enumerate(path.read_text(encoding="utf-8").removesuffix("\n").split("\n"), 1):
        row = json.loads(line)
        if row["chosen"][:-1] != row["rejected"][:-1]:
            raise SystemExit(f"{path}, line {number}: TRL needs pairs that differ in their last message only")
        out.append({"prompt": row["chosen"][:-1], "chosen": row["chosen"][-1:], "rejected": row["rejected"][-1:]})
    return out


def deepspeed_config() -> dict[str, object]:
    """This project's ZeRO-2 file without the monitor; the Trainer fills its "auto" values."""
    config = json.loads((REPO / "ds_configs" / "zero2.json").read_text())
    del config["tensorboard"]
    return config


def main() -> None:
    before_gib = used_gib()
    task = read_task()
    if DEVICE.type == "cpu":
        native.prepare(heap=False)  # the model is this project's, with the kernels that it has for it
    precomputed = bool(task.options["precomputed"])
    dtype: torch.dtype = getattr(torch, task.options.get("dtype", "bfloat16"))
    tokenizer = AutoTokenizer.from_pretrained(task.path / "tokenizer")
    clock = Clock()
    # Created before the models, as transformers requires: it enables DeepSpeed for them.
    config = DPOConfig(
        output_dir=str(task.path / "trl"),
        loss_type=["sigmoid_norm"],
        beta=0.1,
        bf16=dtype == torch.bfloat16,
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
    adapters = None
    if rank := task.options.get("lora_rank"):
        adapters = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")
    alone = precomputed or adapters is not None
    models = [AutoModelForCausalLM.from_pretrained(task.path / "model", dtype=dtype) for _ in range(1 if alone else 2)]
    trainer = Trainer(
        model=models[0],
        # With precomputed log-probs or adapters TRL needs no second model and keeps none.
        ref_model=None if alone else models[1],
        peft_config=adapters,
        args=config,
        train_dataset=Dataset.from_list(rows(task.path / "pairs.jsonl")),
        processing_class=tokenizer,
        callbacks=[clock],
    )
    trainer.train()
    if task.options["zero2"]:
        # use_cpu together with DeepSpeed is rare; check that the Trainer really uses DeepSpeed.
        assert trainer.model_wrapped.zero_optimization_stage() == 2
    optimizer = trainer.optimizer
    while hasattr(optimizer, "optimizer"):  # what accelerate and DeepSpeed wrap
        optimizer = optimizer.optimizer
    assert isinstance(optimizer, torch.optim.AdamW)
    memory = memory_of(clock.peak_gib, before_gib, models, optimizer)
    write_result(task, clock.seconds[task.warmup_steps :], memory, before_seconds=trainer.precompute_seconds)


if __name__ == "__main__":
    main()
