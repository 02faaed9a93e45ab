"""Tries a recipe for each kind of model: start weights that know the demo's facts and both tones, then DPO.

    python -m tests.benchmarks.recipes [--kinds minimind2 qwen3 ...] [--epochs 5] [--folder FOLDER]

start weights of a kind (supervised fine-tuning from scratch, as the demo's) -> launch/train_dpo.py with the recipe's
flags -> held-out loss, margin and accuracy before and after, and what the run has estimated of its margin

The data, the tokenizer and the held-out pairs are the demo's, so a recipe takes minutes on one core. What it shows is
that the defaults of a kind, with a learning rate that fits the steps, learn; not how good a large model becomes.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from minimind import MiniMindConfig, MiniMindForCausalLM, demo, save_weights
from minimind.demo.make_data import SEED
from minimind.demo.make_weights import answer_loss, batches_of, make_rows
from tests.conftest import REPO

_VOCABULARY = 6400


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """A kind of model, small, and flags with which it learns.

    Attributes:
        config: the model's configuration.
        model: its class.
        flags: for `launch/train_dpo.py`, beside the data's; what is not here is the kind's default.
    """

    config: Any
    model: Any
    flags: tuple[str, ...]


def _minimind(**sizes: Any) -> MiniMindConfig:
    return MiniMindConfig(vocab_size=_VOCABULARY, num_attention_heads=4, num_key_value_heads=2, **sizes)


def _hugging_face(config: type[Any], **fields: Any) -> Any:
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 24}
    ends = {"bos_token_id": 1, "eos_token_id": 2, "max_position_embeddings": 512}
    sizes = {"hidden_size": 96, "intermediate_size": 256, "num_hidden_layers": 2}
    return config(vocab_size=_VOCABULARY, **sizes, **heads, **ends, **fields)


def recipes() -> dict[str, Recipe]:
    """Kind -> recipe."""
    own = MiniMindForCausalLM
    return {
        "minimind2": Recipe(
            config=_minimind(generation=2, hidden_size=128, num_hidden_layers=2),
            model=own,
            flags=("--learning_rate", "2e-4"),
        ),
        "minimind3": Recipe(
            config=_minimind(generation=3, hidden_size=64, num_hidden_layers=4),
            model=own,
            flags=("--learning_rate", "3e-4"),
        ),
        "minimind3_moe": Recipe(
            config=_minimind(generation=3, hidden_size=64, num_hidden_layers=4, use_moe=True),
            model=own,
            flags=("--learning_rate", "3e-4"),
        ),
        "llama": Recipe(
            config=_hugging_face(LlamaConfig, tie_word_embeddings=False),
            model=LlamaForCausalLM,
            flags=("--learning_rate", "5e-5"),
        ),
        "qwen3": Recipe(
            config=_hugging_face(Qwen3Config, tie_word_embeddings=True),
            model=Qwen3ForCausalLM,
            flags=("--learning_rate", "5e-5"),
        ),
    }


def make_start(recipe: Recipe, epochs: int, path: Path) -> float:
    """Train start weights on both answers of every pair that is not held out, and write them; the last epoch's loss."""
    torch.manual_seed(SEED)
    model = recipe.model(recipe.config).train()
    tokenizer = AutoTokenizer.from_pretrained(demo.TOKENIZER_PATH)
    rows = make_rows(tokenizer, SEED + 100)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, betas=(0.9, 0.98), weight_decay=0.01)
    total = epochs * len(batches_of(rows, seed=0))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / 50) * 0.5 * (1 + math.cos(math.pi * step / total))
    )
    losses: list[float] = []
    for epoch in range(epochs):
        losses = []
        for batch in batches_of(rows, seed=epoch):
            loss = answer_loss(model, batch)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
    if isinstance(model, MiniMindForCausalLM):
        save_weights(model.eval(), path)
    else:
        model.half().save_pretrained(path)
        tokenizer.save_pretrained(path)
    return sum(losses) / len(losses)


def run(recipe: Recipe, weight: Path, folder: Path, more: Sequence[str]) -> dict[str, Any]:
    """Train with the recipe; held-out metrics before and after, and the estimate."""
    command = [
        *(sys.executable, "launch/train_dpo.py", "--deepspeed", "ds_configs/zero2.json"),
        *("--data_path", demo.TRAIN_PATH, "--eval_data_path", demo.EVAL_PATH, "--tokenizer_path", demo.TOKENIZER_PATH),
        *("--from_weight", weight, "--save_dir", folder, "--save_interval", "0", "--log_interval", "5"),
        *(
            "--batch_size",
            "8",
            "--max_seq_len",
            "128",
            "--warmup_ratio",
            "0.1",
            "--dtype",
            "float32",
            *recipe.flags,
            *more,
        ),
    ]
    done = subprocess.run(list(map(str, command)), cwd=REPO, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    held_out = [line for line in lines if "eval/loss" in line]
    estimate = re.search(r"the\s+margin can reach about ([\d.e+-]+)", done.stdout)
    return {
        "before": held_out[0],
        "after": held_out[-1],
        "steps": held_out[-1]["step"],
        "estimate": float(estimate[1]) if estimate else math.nan,
    }


def main(argv: Sequence[str] | None = None) -> None:
    known = recipes()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kinds", nargs="+", choices=list(known), default=list(known))
    parser.add_argument("--epochs", type=int, default=5, help="of the start weights' training")
    parser.add_argument("--folder", default=None, help="for weights and runs; weights there are taken (default: none)")
    parser.add_argument("--flags", nargs=argparse.REMAINDER, default=[], help="further flags of the runs")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(arguments.folder or temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for kind in arguments.kinds:
            recipe = known[kind]
            weight = folder / (f"{kind}.pth" if recipe.model is MiniMindForCausalLM else kind)
            if not weight.exists():
                print(f"{kind}: start weights, loss {make_start(recipe, arguments.epochs, weight):.3f}", flush=True)
            with tempfile.TemporaryDirectory(dir=folder) as out:
                found = run(recipe, weight, Path(out), arguments.flags)
            names = ("loss", "rewards/margins", "rewards/accuracies")
            shown = ", ".join(
                f"{name} {found['before'][f'eval/{name}']:.4f} -> {found['after'][f'eval/{name}']:.4f}"
                for name in names
            )
            flags = " ".join((*recipe.flags, *arguments.flags))
            print(f"{kind} ({flags}): {found['steps']} steps, {shown}; estimate {found['estimate']:.0e}", flush=True)


if __name__ == "__main__":
    main()
