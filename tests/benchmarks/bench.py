"""Compares DPO trainers on the same pairs, model, batch and machine: speed and memory, medians of interleaved rounds.

    python -m tests.benchmarks.bench [--data FILE.jsonl --tokenizer FOLDER] [--peers ours,minimind-fp32,...]

Prints a table, its ratios, the time until this project's first step and the parts of its steps. Writes
`bench-DATA.json` and `bench-DATA.png` into --out. If a trainer cannot run, the reason is printed and the others run;
TRL needs the `bench` extra. Speeds change with the machine and from minute to minute, so only ratios of one run are
meaningful.

Every trainer warms up on the largest of the timed batches, so that it has all its memory before the clock starts. The
first access to a page takes time in the kernel, and a trainer that pads every batch to the same size would have done
that after any batch.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer
from transformers.utils import logging

import minimind
from minimind import demo
from minimind.data.packs import PackedPairs, pack
from minimind.data.selection import select_pairs
from minimind.data.sources import open_source
from minimind.data.table_cache import load_table
from minimind.native.processor import Products, describe, fastest_products
from minimind.plan.peaks import stated_peak
from tests.benchmarks import report
from tests.benchmarks.common import Task, processor_name
from tests.benchmarks.peers import CORES, PEERS, NotHereError, PeerError, run_peer, task_of
from tests.benchmarks.work import GemmRates, Work, gemm_rates, work_of

_DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default=str(demo.TRAIN_PATH), help="preference pairs, JSON lines")
    parser.add_argument("--tokenizer", default=str(demo.TOKENIZER_PATH), help="folder of the tokenizer")
    parser.add_argument("--peers", default=",".join(PEERS), help=f"of {', '.join(PEERS)}")
    parser.add_argument("--batch_size", type=int, default=4, help="pairs per rank and micro-batch")
    parser.add_argument("--max_seq_len", type=int, default=1024)
    parser.add_argument("--hidden_size", type=int, default=512)
    parser.add_argument("--num_hidden_layers", type=int, default=8)
    parser.add_argument("--warmup_steps", type=int, default=2, help="of one micro-batch each, not timed")
    parser.add_argument("--steps", type=int, default=6, help="of one micro-batch each, timed")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--timeout", type=float, default=1200, help="seconds that one trainer may take in a round")
    parser.add_argument("--out", default="out/bench", help="folder of the JSON and the chart")
    arguments = parser.parse_args(argv)
    arguments.peers = arguments.peers.split(",")
    if unknown := [name for name in arguments.peers if name not in PEERS]:
        parser.error(f"--peers: no {', '.join(unknown)}; there are {', '.join(PEERS)}")
    for name in ("batch_size", "warmup_steps", "steps", "rounds"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name} must be at least 1")
    return arguments


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bench:
    """The inputs of all trainers. `folder` has their files; `packs` are the pairs, one per pack."""

    arguments: argparse.Namespace
    folder: Path
    config: minimind.MiniMindConfig
    packs: list[PackedPairs]

    def run(self, name: str, **options: Any) -> dict[str, Any]:
        """One round of a trainer, with the GEMM rates before and after it in its dtype."""
        task = self.task(name)
        task = dataclasses.replace(task, options={**task.options, **options})
        before = self.rates(PEERS[name].dtype)
        result = run_peer(PEERS[name], task, self.arguments.timeout)
        return {
            **result,
            "gemm_rates": [dataclasses.asdict(rates) for rates in (before, self.rates(PEERS[name].dtype))],
        }

    def work(self, name: str) -> Work:
        """The work in the timed steps of a trainer."""
        task, together = self.task(name), self.arguments.batch_size * PEERS[name].batches
        start = task.warmup_steps * together
        return work_of(self.packs[start : start + task.steps * together], self.config)

    def rates(self, dtype: str) -> GemmRates:
        """GEMM rates measured now, for a micro-batch of median size."""
        if torch.cuda.is_available() or dtype != "bfloat16" or fastest_products() is not Products.FLOAT32:
            measured = dtype
        else:
            measured = "float32"  # a CPU without bfloat16 instructions multiplies bfloat16 matrices in float32
        each = self.work("ours")
        batches = each.pairs / self.arguments.batch_size
        tokens, targets = (max(1, round(count / batches)) for count in (each.packed_tokens, each.targets))
        return gemm_rates(self.config, tokens, targets, _DTYPES[measured])

    def task(self, name: str) -> Task:
        """The steps that a trainer takes in a round."""
        return task_of(
            PEERS[name],
            self.folder,
            batch_size=self.arguments.batch_size,
            max_seq_len=self.arguments.max_seq_len,
            warmup_pairs=self.arguments.warmup_steps * self.arguments.batch_size,
            pairs=len(self.packs),
        )


def prepare(arguments: argparse.Namespace, folder: Path) -> Bench:
    """Write the inputs of all trainers.

    Raises:
        SystemExit: the data has too few usable pairs.
    """
    tokenizer = AutoTokenizer.from_pretrained(arguments.tokenizer)
    table = load_table(
        open_source(Path(arguments.data)),
        tokenizer,
        max_length=arguments.max_seq_len,
        num_workers=2,
        cache_dir=folder / "cache",
    )
    table = select_pairs(table, on_bad_row="skip", on_long_row="cut")
    each = arguments.batch_size
    count = arguments.steps * each
    if len(table) < count:
        raise SystemExit(f"{arguments.data} has {len(table)} usable pairs; {count} are needed (--steps, --batch_size)")
    lines = Path(arguments.data).read_text(encoding="utf-8").split("\n")
    timed = [table[index] for index in range(count)]
    batches = [timed[start : start + each] for start in range(0, count, each)]
    heaviest = max(batches, key=lambda batch: len(pack(batch).token_ids))
    pairs = heaviest * arguments.warmup_steps + timed
    (folder / "pairs.jsonl").write_text(
        "".join(lines[table.lines[pair.index] - 1] + "\n" for pair in pairs), encoding="utf-8"
    )
    tokenizer.save_pretrained(folder / "tokenizer")
    torch.manual_seed(0)
    config = minimind.MiniMindConfig(
        generation=3, hidden_size=arguments.hidden_size, num_hidden_layers=arguments.num_hidden_layers
    )
    model = minimind.MiniMindForCausalLM(config).to(torch.bfloat16)
    minimind.save_weights(model, folder / "start.pth", torch.float32)
    model.save_pretrained(folder / "model")
    return Bench(arguments=arguments, folder=folder, config=config, packs=[pack([pair]) for pair in pairs])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measured:
    """Results of the rounds.

    Attributes:
        rounds: results of `Bench.run` in each round, by trainer.
        missing: trainers that did not run, and why; those in `failed` could have run.
        steps: seconds of the parts of this project's steps, from a separate run.
        kinds: seconds of this project's timed steps by kind of work, from another separate run; may be empty.
        kinds_rate: the GEMM rate around that run.
    """

    rounds: dict[str, list[dict[str, Any]]]
    missing: dict[str, str]
    failed: list[str]
    steps: list[dict[str, float]]
    kinds: dict[str, float]
    kinds_rate: float

    def gemm(self, field: str) -> dict[str, list[float]]:
        """All measurements of a rate by dtype, the slowest first."""
        found: dict[str, list[float]] = {}
        for name, rounds in self.rounds.items():
            found.setdefault(PEERS[name].dtype, []).extend(
                rates[field] for one in rounds for rates in one["gemm_rates"]
            )
        return {dtype: sorted(rates) for dtype, rates in found.items() if rates}


def measure(bench: Bench) -> Measured:
    """Run all rounds. Each has every trainer once; a trainer that fails is left out of later rounds."""
    arguments = bench.arguments
    rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in arguments.peers}
    missing: dict[str, str] = {}
    failed, steps, kinds, kinds_rate = [], [], {}, 0.0
    for number in range(1, arguments.rounds + 1):
        for name in (name for name in arguments.peers if name not in missing):
            started = time.perf_counter()
            print(f"round {number}, {name} ...", flush=True)
            try:
                rounds[name].append(bench.run(name))
                result = f"{sum(rounds[name][-1]['seconds']):.1f} s of timed steps"
            except PeerError as error:
                missing[name] = str(error)
                failed += [] if isinstance(error, NotHereError) else [name]
                result = f"did not run: {error}"
            print(f"round {number}, {name}: {result} ({time.perf_counter() - started:.0f} s in all)", flush=True)
    if rounds.get("ours"):
        try:
            steps = bench.run("ours", timers=True)["steps"][bench.task("ours").warmup_steps :]
            profiled = bench.run("ours", profiled=True)
            kinds, kinds_rate = profiled["kinds"], report.rate_of(profiled, live_reference=True)
        except PeerError as error:  # the rounds are not lost for it
            failed.append("ours")
            print(f"the parts of our steps: {error}", flush=True)
    return Measured(rounds=rounds, missing=missing, failed=failed, steps=steps, kinds=kinds, kinds_rate=kinds_rate)


def _machine() -> str:
    """The GPU, or the CPU with its cores and its way of multiplying bfloat16 matrices."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{CORES} cores of {processor_name()}; bfloat16 by {describe()}"


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmark. The exit status is 1 if a configuration of this project failed that can run here."""
    arguments = parse(argv)
    logging.disable_progress_bar()
    # SIGTERM raises an exception, so that the running trainer is ended too.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    data, out = Path(arguments.data).stem, Path(arguments.out)
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        bench = prepare(arguments, Path(temporary))
        measured = measure(bench)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    lines = report.lines_of(measured.rounds, bench.work, device)
    figures = report.figures(lines)
    ours = measured.rounds.get("ours")
    startup = report.startup(ours) if ours else {}
    parts = report.breakdown(measured.steps) if measured.steps else {}
    title = (
        f"DPO on {data}: MiniMind-3 of hidden {arguments.hidden_size} x {arguments.num_hidden_layers} layers, "
        f"{arguments.batch_size} pairs a batch, {arguments.max_seq_len} tokens a row, {_machine()}"
    )
    pairs = bench.work("ours").pairs
    print(f"\n{title}\n{pairs} pairs a round, medians of {arguments.rounds} rounds")
    print("bare matrix products around the rounds, GFLOP/s (slowest, median, fastest measurement):")
    for field in ("forward", "backward", "peak"):
        for dtype, rates in measured.gemm(field).items():
            shown = ", ".join(f"{rate / 1e9:.0f}" for rate in (rates[0], statistics.median(rates), rates[-1]))
            print(f"  {dtype} {field}: {shown}")
    for dtype in measured.gemm("peak"):
        peak = stated_peak(device, dtype)
        of = f"{peak / 1e12:.0f} TFLOP/s as stated for this GPU" if peak else "the fastest product above"
        print(f"MFU in {dtype}: useful operations over {of}")
    print(f"\n{report.table(lines, measured.missing)}\n")
    for text, value in figures.items():
        print(f"{value:>8.2f}  {text}")
    if startup:
        cpu = next(line.first_step_cpu_seconds for line in lines if line.trainer == "ours")
        print(report.parts_text(f"\nto the end of our first step, {cpu:.1f} s of processor time in the rank", startup))
    if parts:
        print(report.parts_text("\none step of ours", parts))
    if measured.kinds:
        print(f"\n{report.kinds_text(measured.kinds, bench.work('ours'), measured.kinds_rate)}")
    record = {
        "arguments": vars(arguments),
        "machine": {"runs_on": _machine(), "processor": platform.machine(), "torch": torch.__version__},
        "lines": [dataclasses.asdict(line) for line in lines],
        "did_not_run": measured.missing,
        "figures": figures,
        "seconds_to_first_step": startup,
        "seconds_of_a_step": parts,
        "seconds_by_kind": measured.kinds,
        "rounds": measured.rounds,
    }
    (out / f"bench-{data}.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    try:
        if lines:
            report.draw(lines, parts, out / f"bench-{data}.png", title)
    except ModuleNotFoundError as error:
        print(f"no chart: {error}; it is of the bench extra")
    if any(name.startswith("ours") for name in measured.failed):
        sys.exit(1)


if __name__ == "__main__":
    main()
