"""Measures what a ledger (--ledger 1) adds to training, on one core.

    python -m tests.benchmarks.ledger_cost [--data pairs.jsonl --tokenizer FOLDER] [--pairs 4]

Steps without and with a ledger take turns in one process, on the same batch: forward, loss, backward, AdamW, metrics.
The median of the differences of neighbours says what a step loses. It drowns in what else a machine does, so the
ledger's own work is measured by itself too: what each step adds, what a logged step adds, what a save writes, each
divided by the time of its steps.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.distributed as dist
from transformers import AutoTokenizer

from minimind import MiniMindConfig, MiniMindForCausalLM, demo
from minimind.data.packs import pack
from minimind.data.pair_tables import PairTables
from minimind.data.sources import open_source
from minimind.data.table_cache import load_table
from minimind.diagnosis import ledger
from minimind.engine.scorer import PairScorer
from minimind.training.console import Console
from minimind.training.events import Log, Save
from minimind.training.jobs.dpo import DPOJob
from minimind.training.listeners.ledger import LedgerFiles, kept_values
from minimind.training.metrics import MetricSums
from tests.benchmarks.common import processor_name
from tests.benchmarks.metrics_cost import WORLD, job_of


def seconds_of(work: Callable[[], object]) -> float:
    """Processor time, which other work on the machine disturbs less than time that passes."""
    started = time.process_time()
    work()
    return time.process_time() - started


def measure(tables: PairTables, arguments: argparse.Namespace, folder: Path) -> str:
    """The shares as text."""
    job, pairs = job_of(DPOJob), arguments.pairs
    libraries = seconds_of(ledger.load_libraries)
    listener = LedgerFiles(
        folder=folder,
        values=kept_values(job, has_reference=True),
        table=tables,
        eval_table=None,
        eval_sets={},
        console=Console(enabled=True),
        world=WORLD,
    )
    sizes = {"hidden_size": arguments.hidden_size, "num_hidden_layers": arguments.layers}
    scorer = PairScorer(MiniMindForCausalLM(MiniMindConfig(generation=3, vocab_size=6400, **sizes)).train())
    optimizer = torch.optim.AdamW(scorer.parameters(), lr=1e-6)
    sums, batch = MetricSums(WORLD, job), pack([tables[index] for index in range(pairs)])
    (target,) = job.targets([batch])
    log_probs, _ = scorer(batch)
    outcome = job.outcome(batch, log_probs.detach(), target)

    def step(number: int, *, with_ledger: bool) -> None:
        found, aux_loss = scorer(batch)
        result = job.outcome(batch, found, target)
        (result.losses.mean() + aux_loss).backward()
        optimizer.step()
        optimizer.zero_grad()
        sums.add(result, aux_loss, batch.row_tokens)
        if with_ledger:
            listener.met(number, batch, result)
            listener.on_log(Log(step=number, metrics={}))  # at its worst: every step is logged

    plain, differences = [], []
    for number in range(arguments.rounds):
        # Of two neighbours the first is now without, now with a ledger.
        found = {}
        for with_ledger in (number % 2 == 0, number % 2 == 1):
            found[with_ledger] = seconds_of(lambda w=with_ledger, n=number: step(n, with_ledger=w))
        plain.append(found[False])
        differences.append(found[True] - found[False])
    usual = statistics.median(plain)
    # The first save has what any first write has.
    first = seconds_of(lambda: listener.on_save(Save(step=0)))
    own = [seconds_of(lambda n=number: listener.met(n, batch, outcome)) for number in range(arguments.steps)]
    fetch = seconds_of(lambda: listener.on_log(Log(step=arguments.steps, metrics={})))
    write = seconds_of(lambda: listener.on_save(Save(step=arguments.steps)))
    whole = usual * arguments.steps
    return (
        f"{len(batch.token_ids)} tokens, {usual:.3f} s a step, on {processor_name()}\n"
        f"steps in turns, {arguments.rounds} pairs, all logged: median difference "
        f"{100 * statistics.median(differences) / usual:+.2f} % of a step\n"
        f"the ledger's own work in {arguments.steps} steps with one save: {100 * sum(own) / whole:.3f} % in the steps, "
        f"{100 * fetch / whole:.3f} % at the logged one, {100 * write / whole:.3f} % in the save\n"
        f"once in a run: {libraries:.2f} s for libraries before the first step, {first:.3f} s in the first save"
    )


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default=str(demo.TRAIN_PATH))
    parser.add_argument("--tokenizer", default=str(demo.TOKENIZER_PATH))
    parser.add_argument("--pairs", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--hidden_size", type=int, default=512)
    parser.add_argument("--layers", type=int, default=8)
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(arguments.tokenizer)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        dist.init_process_group("gloo", init_method=f"file://{folder}/group", rank=0, world_size=1)
        source = open_source(Path(arguments.data))
        table = load_table(source, tokenizer, max_length=1024, num_workers=0, cache_dir=folder / "cache")
        print(measure(PairTables(tables=(table,)), arguments, folder))
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
