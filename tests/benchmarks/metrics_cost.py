"""Measures what metrics add to a step of training, on one core.

    python -m tests.benchmarks.metrics_cost [--data pairs.jsonl --tokenizer FOLDER] [--pairs 4]

What metrics add to is measured by itself, without and with them, and divided by the time of a step's forward, loss and
backward: a difference of two whole steps would drown in what else the machine does. DeepSpeed's own work and the
optimizer, which know no metrics, are not counted, so the true shares are smaller. Least processor time of some rounds.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor
from transformers import AutoTokenizer

from minimind import MiniMindConfig, MiniMindForCausalLM, demo
from minimind.data.packs import PackedPairs, pack
from minimind.data.sources import open_source
from minimind.data.table_cache import load_table
from minimind.engine.scorer import PairScorer
from minimind.objective.log_probs import target_distributions, target_log_probs
from minimind.objective.losses import build_objective
from minimind.objective.rows import ReferenceScores
from minimind.ranks.world import World
from minimind.training.jobs.dpo import DPOJob
from minimind.training.jobs.job import BatchOutcome
from minimind.training.metrics import MetricSums
from tests.benchmarks.common import processor_name

WORLD = World(rank=0, local_rank=0, size=1, device=torch.device("cpu"))


class Bare(DPOJob):
    """Gives the loss alone."""

    def outcome(self, batch, log_probs, target):
        return BatchOutcome(losses=super().outcome(batch, log_probs, target).losses, metrics={})


def job_of(kind: type[DPOJob]) -> DPOJob:
    def score(batches, per_token):
        return [ReferenceScores(sums=torch.zeros(batch.num_pairs, 2)) for batch in batches]

    job = kind(objective=build_objective("sigmoid"), reference=SimpleNamespace(score=score))
    if kind is Bare:
        job.metrics = job.token_metrics = ()
    return job


def parts(scorer: PairScorer, batch: PackedPairs, hidden: Tensor) -> dict[str, Callable[[], object]]:
    """Name -> work of a step: all of it without metrics, and those parts that metrics add to, without and with them."""
    bare, whole = job_of(Bare), job_of(DPOJob)
    (target,) = whole.targets([batch])
    head = scorer.model.get_output_embeddings().weight
    columns = torch.rand(len(batch.target_ids), 3)

    def step() -> None:
        scorer.zero_grad()
        log_probs, aux_loss = scorer(batch)
        (bare.outcome(batch, log_probs, target).losses.mean() + aux_loss).backward()

    def add(job: DPOJob, given: Tensor) -> Callable[[], object]:
        sums, zero = MetricSums(WORLD, job), torch.zeros(())
        return lambda: sums.add(job.outcome(batch, given, target), zero, batch.row_tokens)

    return {
        "step": step,
        "add, bare": add(bare, columns[:, 0].contiguous()),
        "add": add(whole, columns[:, 0].contiguous()),
        "add, logged": add(whole, columns),
        "head": lambda: target_log_probs(hidden, head, batch.target_ids),
        "head, logged": lambda: target_distributions(hidden, head, batch.target_ids),
    }


def least_seconds(work: Callable[[], object], times: int) -> float:
    """Of processor time: the least is what other work on the machine disturbs least."""
    found = []
    for _ in range(times):
        started = time.process_time()
        work()
        found.append(time.process_time() - started)
    return min(found)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default=str(demo.TRAIN_PATH))
    parser.add_argument("--tokenizer", default=str(demo.TOKENIZER_PATH))
    parser.add_argument("--pairs", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--hidden_size", type=int, default=512)
    parser.add_argument("--layers", type=int, default=8)
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(arguments.tokenizer)
    with tempfile.TemporaryDirectory() as folder:
        table = load_table(
            open_source(Path(arguments.data)), tokenizer, max_length=1024, num_workers=0, cache_dir=Path(folder)
        )
        batch = pack([table[index] for index in range(arguments.pairs)])
    sizes = {"hidden_size": arguments.hidden_size, "num_hidden_layers": arguments.layers}
    scorer = PairScorer(MiniMindForCausalLM(MiniMindConfig(generation=3, vocab_size=6400, **sizes)).train())
    hidden = torch.randn(len(batch.target_ids), arguments.hidden_size)
    work = parts(scorer, batch, hidden)
    found: dict[str, float] = {}
    for _ in range(arguments.rounds):
        for name, one in work.items():
            seconds = least_seconds(one, 2 if name == "step" else 10)
            found[name] = min(seconds, found.get(name, seconds))
    step = found["step"]
    every = (found["add"] - found["add, bare"]) / step
    logged = (found["add, logged"] - found["add, bare"] + found["head, logged"] - found["head"]) / step
    print(f"{len(batch.token_ids)} tokens, {len(batch.target_ids)} targets, {step:.3f} s a step, on {processor_name()}")
    print(f"metrics of every step: {100 * every:.2f} % of its time; of a logged step: {100 * logged:.2f} %")


if __name__ == "__main__":
    main()
