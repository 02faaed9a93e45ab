"""The chain: pretraining, fine-tuning and DPO of a new size on the demo's facts, each started from the one before.

    argv -> corpus.py -> for each stage: launch -> answers before and after -> Progress -> exit status

It ends with status 0 if each run has improved its held-out metric.
"""

from __future__ import annotations

import argparse
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
from minimind.chain.stages import STAGES, Progress, Stage
from minimind.errors import ConfigError, LaunchError, MiniMindError
from minimind.sweep.execute import deepspeed_command
from minimind.training.listeners.samples import source_answers
from minimind.weights.sources import open_weights


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see --help")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the chain. An error of the user is printed in one line, and the exit status is 1."""
    try:
        found = run_chain(sys.argv[1:] if argv is None else argv)
    except MiniMindError as error:
        sys.exit(f"{type(error).__name__}: {error}")
    sys.exit(0 if all(one.is_better for one in found) else 1)


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


def run_chain(argv: Sequence[str]) -> list[Progress]:
    """Run all stages.

    Raises:
        ConfigError: flags are wrong.
        LaunchError: a run has failed.
    """
    own = build_parser().parse_args(list(argv))
    folder, hidden = Path(own.out), own.hidden_size
    write_corpus(folder / "data")
    sizes = ("--generation", "3", "--hidden_size", str(hidden), "--num_hidden_layers", "3")
    found: list[Progress] = []
    start: Path | None = None
    for stage in STAGES:
        print(f"\n{stage.name}: launch/{stage.script} from {start or 'new weights'}", flush=True)
        before = _answers(start)
        began = time.monotonic()
        _launch(stage, stage.command(folder, start, sizes), own.num_gpus)
        start = stage.written(folder, hidden)
        found.append(stage.progress(folder))
        _show(before, _answers(start))
        print(f"  {found[-1].describe()}, in {time.monotonic() - began:.0f} s", flush=True)
    print("\n" + "\n".join(one.describe() for one in found), flush=True)
    return found


def _launch(stage: Stage, command: Sequence[str], ranks: int) -> None:
    """Run a stage, and show its evaluations and what it saved."""
    arguments = [deepspeed_command(), "--num_gpus", str(ranks), *command]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        lines: list[str] = []
        for line in process.stdout:
            lines.append(line)
            if line.startswith(("evaluation", "step", "saved")):
                print(f"  {line}", end="", flush=True)
    if process.returncode:
        raise LaunchError(f"{stage.name}: the run has failed:\n{''.join(lines[-20:])}")


def _answers(weights: Path | None) -> list[str]:
    """Greedy answers to the demo's held-out questions; empty before there are weights."""
    if weights is None:
        return [""] * len(demo.SAMPLE_PROMPTS)
    tokenizer = AutoTokenizer.from_pretrained(demo.TOKENIZER_PATH)
    return source_answers(open_weights(weights, {}), tokenizer, demo.SAMPLE_PROMPTS)


def _show(before: Sequence[str], after: Sequence[str]) -> None:
    for prompt, old, new in zip(demo.SAMPLE_PROMPTS, before, after, strict=True):
        print(f"\n  {prompt}\n    before  {old}\n    after   {new}", flush=True)
