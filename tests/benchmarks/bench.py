"""DPO trainers on the same pairs, model, batch and machine: speed and memory, interleaved, medians of rounds.

    python -m tests.benchmarks.bench [--data FILE.jsonl --tokenizer FOLDER] [--peers ours,minimind-fp32,...]

Prints a table and writes `bench.json` and `bench.png` into --out. TRL takes part where the `bench` extra is installed.
Absolute numbers are this machine's and this minute's; only ratios within one run say anything.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from transformers import AutoTokenizer

import minimind
from minimind import demo
from minimind.data.pack import PackedPairs, pack
from minimind.data.table import load_table
from tests.benchmarks.common import Task
from tests.distributed.launching import metrics, train

HERE = Path(__file__).resolve().parent
# name -> script (None: this project's own launch) and options
PEERS: dict[str, tuple[str | None, dict[str, object]]] = {
    "ours": (None, {}),
    "ours-compiled": (None, {"use_compile": 1}),
    "minimind-fp32": ("minimind_loop.py", {"dtype": "float32"}),
    "minimind-bf16": ("minimind_loop.py", {"dtype": "bfloat16"}),
    "trl": ("trl_dpo.py", {"gradient_checkpointing": False, "precomputed": False}),
    "trl-checkpointed": ("trl_dpo.py", {"gradient_checkpointing": True, "precomputed": False}),
    "trl-precomputed": ("trl_dpo.py", {"gradient_checkpointing": False, "precomputed": True}),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Work:
    """What the timed steps amount to.

    Attributes:
        pairs: how many.
        row_tokens: tokens of both rows of each.
        useful_flops: floating-point operations that the packed computation needs: policy forward and backward,
            reference forward, attention over the pairs of tokens that see each other, head at the targets.
    """

    pairs: int
    row_tokens: int
    useful_flops: float


def prepare(arguments: argparse.Namespace, folder: Path) -> tuple[list[PackedPairs], minimind.MiniMindConfig]:
    """Write what every trainer reads; returns the packs of all steps."""
    tokenizer = AutoTokenizer.from_pretrained(arguments.tokenizer)
    table = load_table(
        Path(arguments.data),
        tokenizer,
        max_length=arguments.max_seq_len,
        empty_think_ratio=1.0,
        num_workers=2,
        cache_dir=folder / "cache",
    ).with_bad_rows("skip")
    count = (arguments.warmup_steps + arguments.steps) * arguments.batch_size
    if len(table) < count:
        raise SystemExit(f"{arguments.data} has {len(table)} usable pairs; {count} are needed (--steps, --batch_size)")
    lines = Path(arguments.data).read_text(encoding="utf-8").splitlines()
    chosen = [table[index].line - 1 for index in range(count)]
    (folder / "pairs.jsonl").write_text("".join(lines[line] + "\n" for line in chosen), encoding="utf-8")
    tokenizer.save_pretrained(folder / "tokenizer")
    torch.manual_seed(0)
    config = minimind.MiniMindConfig(
        generation=3, hidden_size=arguments.hidden_size, num_hidden_layers=arguments.num_hidden_layers
    )
    model = minimind.MiniMindForCausalLM(config).to(torch.bfloat16)
    minimind.save_weights(model, folder / "start.pth", torch.float32)
    model.save_pretrained(folder / "model")
    size = arguments.batch_size
    return [pack([table[i] for i in range(start, start + size)]) for start in range(0, count, size)], config


def work_of(packs: list[PackedPairs], config: minimind.MiniMindConfig) -> Work:
    """Useful work of some packs; a backward counts twice its forward."""
    heads, kv = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    matrices = config.hidden_size * (2 * heads + 2 * kv + 3 * config.intermediate_size)
    flops = 0.0
    for one in packs:
        seen = sum((p + c) ** 2 / 2 + r * p + r**2 / 2 for p, c, r in one.segments)
        forward = config.num_hidden_layers * (2 * matrices * len(one.token_ids) + 4 * heads * seen)
        forward += 2 * config.hidden_size * config.vocab_size * len(one.target_ids)
        flops += (1 + 3) * forward
    return Work(
        pairs=sum(one.num_pairs for one in packs), row_tokens=sum(one.row_tokens for one in packs), useful_flops=flops
    )


def gemm_rate(config: minimind.MiniMindConfig, tokens: int) -> float:
    """Floating-point operations per second of this machine's bf16 matrix products at the model's shapes."""
    h, inner = config.hidden_size, config.intermediate_size
    flops, seconds = 0.0, 0.0
    for n, k in ((h, h), (inner, h), (h, inner)):
        x, w = torch.randn(tokens, k, dtype=torch.bfloat16), torch.randn(n, k, dtype=torch.bfloat16)
        times = []
        for _ in range(15):
            started = time.perf_counter()
            torch.nn.functional.linear(x, w)
            times.append(time.perf_counter() - started)
        flops += 2.0 * tokens * n * k
        seconds += statistics.median(times)
    return flops / seconds


def measure(name: str, arguments: argparse.Namespace, folder: Path) -> dict[str, object]:
    """One round of one trainer: seconds of its timed steps and its peak memory."""
    script, options = PEERS[name]
    task = Task(
        folder=str(folder),
        batch_size=arguments.batch_size,
        warmup_steps=arguments.warmup_steps,
        steps=arguments.steps,
        max_seq_len=arguments.max_seq_len,
        options=options,
    )
    if script is None:
        return _measure_ours(task, folder)
    (folder / "task.json").write_text(json.dumps(dataclasses.asdict(task)))
    done = subprocess.run(
        [sys.executable, str(HERE / script), str(folder)], capture_output=True, text=True, timeout=arguments.timeout
    )
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return json.loads((folder / "result.json").read_text())


def _measure_ours(task: Task, folder: Path) -> dict[str, object]:
    save_dir = folder / "ours"
    shutil.rmtree(save_dir, ignore_errors=True)
    flags = {
        "data_path": folder / "pairs.jsonl",
        "tokenizer_path": folder / "tokenizer",
        "from_weight": folder / "start.pth",
        "cache_dir": folder / "cache",
        "max_seq_len": task.max_seq_len,
        "batch_size": task.batch_size,
        "shuffle": 0,
        "log_interval": 1,
        "save_interval": 0,
        "save_dir": save_dir,
        **task.options,
    }
    arguments = [part for flag, value in flags.items() for part in (f"--{flag}", value)]
    train(*arguments, timeout=900, threads=os.cpu_count() or 1).succeeded()
    steps = metrics(save_dir)[task.warmup_steps :]
    return {
        "seconds": [task.batch_size / step["pairs_per_second"] for step in steps],
        "peak_memory_gib": steps[-1]["peak_memory_gib"],
    }


def report(results: dict[str, list[dict]], work: Work, rate: float, arguments: argparse.Namespace) -> list[dict]:
    """One line per trainer: medians over rounds of the time for all timed steps."""
    lines = []
    for name, rounds in results.items():
        seconds = statistics.median(sum(one["seconds"]) for one in rounds)
        lines.append(
            {
                "trainer": name,
                "pairs_per_second": work.pairs / seconds,
                "tokens_per_second": work.row_tokens / seconds,
                "utilisation": work.useful_flops / seconds / rate,
                "peak_memory_gib": statistics.median(one["peak_memory_gib"] for one in rounds),
                "ours_is_faster": 0.0,
            }
        )
    ours = next((line["pairs_per_second"] for line in lines if line["trainer"] == "ours"), None)
    print(
        f"\n{arguments.data}: {work.pairs} pairs a round, {arguments.rounds} rounds, bf16 GEMM {rate / 1e9:.0f} GFLOP/s"
    )
    print(f"{'trainer':<18} {'pairs/s':>8} {'tokens/s':>9} {'useful':>7} {'peak GiB':>9} {'ours is':>8}")
    for line in lines:
        line["ours_is_faster"] = ours / line["pairs_per_second"] if ours else None
        faster = f"{line['ours_is_faster']:.2f}x" if ours else ""
        print(
            f"{line['trainer']:<18} {line['pairs_per_second']:>8.2f} {line['tokens_per_second']:>9,.0f} "
            f"{line['utilisation']:>7.0%} {line['peak_memory_gib']:>9.2f} {faster:>8}"
        )
    return lines


def draw(lines: list[dict], path: Path, title: str) -> None:
    """A bar per trainer."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(8, 0.6 * len(lines) + 1.2))
    names = [line["trainer"] for line in lines][::-1]
    bars = axis.barh(names, [line["pairs_per_second"] for line in lines][::-1], color="#4477aa")
    axis.bar_label(bars, fmt="%.2f", padding=3)
    axis.set(xlabel="pairs per second", title=title)
    axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default=str(demo.TRAIN_PATH))
    parser.add_argument("--tokenizer", default=str(demo.TOKENIZER_PATH))
    parser.add_argument("--peers", default=",".join(PEERS), help=f"of {', '.join(PEERS)}")
    parser.add_argument("--batch_size", type=int, default=4)
    parser.add_argument("--max_seq_len", type=int, default=1024)
    parser.add_argument("--hidden_size", type=int, default=512)
    parser.add_argument("--num_hidden_layers", type=int, default=8)
    parser.add_argument("--warmup_steps", type=int, default=1)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--timeout", type=float, default=1200)
    parser.add_argument("--out", default="out/bench")
    arguments = parser.parse_args()
    names = arguments.peers.split(",")
    out = Path(arguments.out)
    out.mkdir(parents=True, exist_ok=True)
    results: dict[str, list[dict]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as temporary:
        packs, config = prepare(arguments, Path(temporary))
        work = work_of(packs[arguments.warmup_steps :], config)
        tokens = statistics.median(len(one.token_ids) for one in packs)
        rates = [gemm_rate(config, int(tokens))]
        for number in range(arguments.rounds):
            for name in names:
                results[name].append(measure(name, arguments, Path(temporary)))
                print(f"round {number + 1} {name}: {sum(results[name][-1]['seconds']):.1f} s", flush=True)
            rates.append(gemm_rate(config, int(tokens)))
    lines = report(results, work, statistics.median(rates), arguments)
    data = Path(arguments.data).stem
    record = {"arguments": vars(arguments), "gemm_flops": rates, "lines": lines, "rounds": results}
    (out / f"bench-{data}.json").write_text(json.dumps(record, indent=1))
    draw(lines, out / f"bench-{data}.png", f"DPO on {data}, hidden {config.hidden_size}, batch {arguments.batch_size}")


if __name__ == "__main__":
    main()
