"""The chain: pretraining, fine-tuning and DPO of a new size on the demo's facts, each started from the one before.

    argv -> corpus.py -> for each stage: launch -> Progress, Standing -> answers before and after
                      -> shortfalls: the exit status

It ends with status 0 if each run has improved its own held-out metric, and each stage what its weights know.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from transformers import AutoTokenizer

import minimind.model.modeling  # noqa: F401 - registers MiniMind with the Auto classes
from minimind import demo
from minimind.chain.corpus import write_corpus
from minimind.chain.stages import SEED, STAGES, Stage, new_model
from minimind.chain.standing import HEADER, Standing, good_rows, look_at, shortfalls
from minimind.errors import ConfigError, LaunchError, one_line_errors
from minimind.sweep.execute import deepspeed_command
from minimind.weights.construction import model_from_tensors
from minimind.weights.sources import RandomSource, WeightSource, open_weights, tensors


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see --help")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the chain. An error of the user is printed in one line, and the exit status is 1."""
    with one_line_errors():
        missed = run_chain(sys.argv[1:] if argv is None else argv)
    if missed:
        sys.exit("\n".join(("The chain does not hold; not better:", *(f"  - {one}" for one in missed))))


def build_parser() -> argparse.ArgumentParser:
    """The parser of the script's flags."""
    parser = _Parser(
        prog="python launch/chain.py",
        description="Pretrain, fine-tune and align a small model of a new size on the demo's facts.",
        allow_abbrev=False,
    )
    parser.add_argument("--out", default="out/chain", help="folder of the corpus and of the three runs")
    parser.add_argument("--num_gpus", type=int, default=2, help="number of ranks, on a CPU too")
    parser.add_argument("--hidden_size", type=int, default=128, help="hidden size H of the new model")
    return parser


def run_chain(argv: Sequence[str]) -> list[str]:
    """Run all stages.

    Returns: what a stage has not improved, one message each.

    Raises:
        ConfigError: flags are wrong.
        LaunchError: a run has failed.
    """
    own = build_parser().parse_args(list(argv))
    folder, hidden = Path(own.out), own.hidden_size
    began = time.monotonic()
    write_corpus(folder / "data")
    look = _Look()
    standings = [look("new weights", RandomSource(new_model(hidden), SEED))]
    missed: list[str] = []
    start: Path | None = None
    for stage in STAGES:
        print(f"\n{stage.name}: launch/{stage.script} from {start or 'new weights'}", flush=True)
        _launch(stage, stage.command(folder, start, hidden), own.num_gpus)
        start, progress = stage.written(folder, hidden), stage.progress(folder)
        standing = look(stage.name, open_weights(start, {}))
        if stage.has_reference:
            standing = dataclasses.replace(standing, reward_accuracy=progress.after)
        _show(standings[-1], standing)
        print(f"  {progress.describe()}, after {time.monotonic() - began:.0f} s", flush=True)
        standings.append(standing)
        missed += [] if progress.is_better else [progress.describe()]
    print("\n".join(("", HEADER, *(one.describe() for one in standings))), flush=True)
    print(f"in {time.monotonic() - began:.0f} s; tensorboard --logdir {folder}", flush=True)
    return missed + shortfalls(standings)


def _launch(stage: Stage, command: Sequence[str], ranks: int) -> None:
    """Run a stage, and show its evaluations and what it saved."""
    arguments = [deepspeed_command(), "--num_gpus", str(ranks), *command]
    # On a CPU each rank would have a thread for every core, and all would wait for each other.
    threads = max(1, (os.cpu_count() or 1) // ranks)
    environment = {"OMP_NUM_THREADS": str(threads), **os.environ}
    with subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        lines: list[str] = []
        for line in process.stdout:
            lines.append(line)
            if line.startswith(("evaluation", "step", "saved")):
                print(f"  {line}", end="", flush=True)
    if process.returncode:
        raise LaunchError(f"{stage.name}: the run has failed:\n{''.join(lines[-20:])}")


class _Look:
    """Looks at weights, with the tokenizer and the held-out rows of the demo."""

    def __init__(self) -> None:
        self._tokenizer = AutoTokenizer.from_pretrained(demo.TOKENIZER_PATH)
        self._rows = good_rows(self._tokenizer)

    def __call__(self, name: str, source: WeightSource) -> Standing:
        """What weights know, computed in float32 on this process's CPU."""
        state = {name: tensor.float() for name, tensor in tensors(source)}
        return look_at(name, model_from_tensors(source.config, state), self._tokenizer, self._rows)


def _show(before: Standing, after: Standing) -> None:
    for prompt, old, new in zip(demo.SAMPLE_PROMPTS, before.answers, after.answers, strict=True):
        print(f"\n  {prompt}\n    before  {old}\n    after   {new}", flush=True)
