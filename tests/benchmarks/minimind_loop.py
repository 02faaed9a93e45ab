"""MiniMind's DPO loop, from its published description: every row padded to max_seq_len, two full forwards over
chosen and rejected rows, a full log-softmax, plain AdamW. On a CPU float32 as shipped, or bfloat16 under autocast."""

from __future__ import annotations

import contextlib

import torch
from transformers import AutoTokenizer

import minimind
from minimind import native
from minimind.weights.io import fill
from minimind.weights.sources import open_weights
from tests.benchmarks.common import DEVICE, memory_of, now, read_task, used_gib, write_result


def main() -> None:
    before_gib = used_gib()
    task = read_task()
    if DEVICE.type == "cpu":
        native.prepare(heap=False)  # the model is this project's, with the kernels that it has for it
    tokenizer = AutoTokenizer.from_pretrained(task.path / "tokenizer")
    data = minimind.DPODataset(task.path / "pairs.jsonl", tokenizer, task.max_seq_len)
    source = open_weights(task.path / "start.pth", {})
    policy, reference = (minimind.MiniMindForCausalLM(source.config) for _ in range(2))
    for model in (policy, reference):
        fill(model, source)
        model.to(DEVICE)
    reference.eval().requires_grad_(False)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=4e-8)
    half = task.options["dtype"] == "bfloat16"
    autocast = torch.autocast(DEVICE.type, torch.bfloat16) if half else contextlib.nullcontext()
    rows = torch.utils.data.Subset(data, range((task.warmup_steps + task.steps) * task.batch_size))
    loader = torch.utils.data.DataLoader(rows, batch_size=task.batch_size)
    seconds, started = [], now()
    for batch in loader:
        x, y, mask = (
            torch.cat([batch[f"{part}_{half}"] for half in ("chosen", "rejected")]).to(DEVICE)
            for part in ("x", "y", "mask")
        )
        with autocast:
            with torch.no_grad():
                reference_log_probs = minimind.logits_to_log_probs(reference(x).logits, y)
            out = policy(x)
            log_probs = minimind.logits_to_log_probs(out.logits, y)
            loss = minimind.dpo_loss(reference_log_probs, log_probs, mask, 0.1) + out.aux_loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seconds.append(now() - started)
        started = now()
    memory = memory_of(used_gib(peak=True), before_gib, [policy, reference], optimizer)
    write_result(task, seconds[task.warmup_steps :], memory)


if __name__ == "__main__":
    main()
