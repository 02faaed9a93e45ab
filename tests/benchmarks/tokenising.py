"""Measures how fast preference rows are tokenised, beside TRL, and how much memory that takes.

    python -m tests.benchmarks.tokenising --data pairs.jsonl ... --tokenizer FOLDER [--rounds 5]
    python -m tests.benchmarks.tokenising --memory 100000 1000000 --tokenizer FOLDER
    python -m tests.benchmarks.tokenising --start [--rounds 5]

Rate: rows of a file by seconds of processor time, medians of rounds in which both ways run in turn, each in a process
of its own, started on other rows. Ours is what a run does in one process: file -> checked pairs -> table on the disk,
its hashes included. TRL's is `DPOTrainer._prepare_dataset`, which maps `datasets` rows one by one; reading the file is
not counted for it. TRL needs the `bench` extra. Processor time hardly depends on what else the machine does.

Memory: the largest resident memory of each process while it tokenises a file of made rows.

Start: processor time from the start of a process to its first tokens, where it imports what tokenising needs, and where
it imports what a rank of a run does.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import pickle
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from minimind import demo
from minimind.data.encoder import build_encoder
from minimind.data.encoding import EncodingOptions
from minimind.data.sources import open_source
from minimind.data.table_build import Tokenised, TokenisingListener
from minimind.data.table_cache import load_table
from minimind.data.worker_pool import starting_workers
from tests.benchmarks.common import processor_name

_WARMUP_ROWS = 20
# Made rows: numbers of words of a question and of an answer, and of letters of a word. They are short, since memory
# must not grow with the number of rows.
_QUESTION, _ANSWER, _WORD = (1, 3), (2, 4), (2, 5)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", nargs="+", default=[str(demo.TRAIN_PATH)], help="preference pairs, JSON lines")
    parser.add_argument("--tokenizer", default=str(demo.TOKENIZER_PATH), help="folder of the tokenizer")
    parser.add_argument("--max_seq_len", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory", nargs="+", type=int, default=[], help="measure memory with so many made rows")
    parser.add_argument("--num_workers", type=int, default=1, help="with --memory")
    parser.add_argument("--start", action="store_true", help="measure how long a process that tokenises takes to start")
    parser.add_argument("--folder", default=None, help="where made rows and tables are written (default: a temporary)")
    arguments = parser.parse_args(argv)
    if arguments.rounds < 1 or min(arguments.memory, default=1) < 1:
        parser.error("--rounds and --memory must be at least 1")
    return arguments


def warmup_file(path: Path, folder: Path) -> Path:
    """The first rows with other words, so that no answer of theirs is known when the clock starts."""
    with path.open(encoding="utf-8") as file:
        rows = [json.loads(line) for _, line in zip(range(_WARMUP_ROWS), file, strict=False)]
    for row in rows:
        for message in (*row["chosen"], *row["rejected"]):
            message["content"] = message["content"][::-1]
    made = folder / "warmup.jsonl"
    made.write_text("".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows), encoding="utf-8")
    return made


def our_seconds(tokenizer: Any, paths: Sequence[Path], max_length: int, folder: Path) -> tuple[int, float]:
    """Rows and seconds of the last file; those before it warm up."""
    for path in paths:
        started = time.process_time()
        table = load_table(open_source(path), tokenizer, max_length=max_length, num_workers=1, cache_dir=folder)
        seconds = time.process_time() - started
    assert len(table) == table.total_rows, "the file has rows that only one of the two refuses"
    return table.total_rows, seconds


def trl_seconds(tokenizer: Any, paths: Sequence[Path], max_length: int, folder: Path) -> tuple[int, float]:
    """As `our_seconds`, for TRL."""
    import datasets
    from trl import DPOConfig, DPOTrainer

    datasets.disable_caching()
    datasets.disable_progress_bars()
    config = DPOConfig(output_dir=str(folder), max_length=max_length, bf16=False, use_cpu=True, report_to=[])
    # Of the trainer itself, the method reads this attribute.
    trainer: Any = types.SimpleNamespace(_tokenizer=tokenizer)
    for path in paths:
        rows = datasets.Dataset.from_list([json.loads(line) for line in path.read_bytes().splitlines()])
        started = time.process_time()
        DPOTrainer._prepare_dataset(trainer, rows, tokenizer, config, "train")
        seconds = time.process_time() - started
    return len(rows), seconds


def made_rows(number: int, seed: int = 0) -> Iterator[str]:
    """Lines of short pairs of random words."""
    draw = random.Random(seed)
    letters = "abcdefghijklmnopqrstuvwxyz"

    def text(least: int, most: int) -> str:
        return " ".join(
            "".join(draw.choices(letters, k=draw.randint(*_WORD))) for _ in range(draw.randint(least, most))
        )

    for _ in range(number):
        question = {"role": "user", "content": text(*_QUESTION)}
        halves = [[question, {"role": "assistant", "content": text(*_ANSWER)}] for _ in range(2)]
        yield json.dumps({"chosen": halves[0], "rejected": halves[1]}) + "\n"


class Peaks(TokenisingListener):
    """Notes the largest resident memory of this process and of its worker processes."""

    def __init__(self) -> None:
        self.workers: dict[int, int] = {}

    def on_rows(self, done: Tokenised) -> None:
        for task in Path("/proc/self/task").iterdir():
            for child in (task / "children").read_text().split():
                self.workers[int(child)] = peak_kib(child)


def peak_kib(process: str = "self") -> int:
    """Largest resident memory of a process since its start, in KiB; 0 if it has ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), 0)


def memory_of(path: Path, arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Pairs, seconds, and resident memory in KiB of tokenising a file in this process and its workers."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(arguments.tokenizer)
    started, before, peaks = time.perf_counter(), peak_kib(), Peaks()
    table = load_table(
        open_source(path),
        tokenizer,
        max_length=arguments.max_seq_len,
        num_workers=arguments.num_workers,
        cache_dir=folder,
        listener=peaks,
    )
    return {
        "pairs": len(table),
        "seconds": time.perf_counter() - started,
        "before": before,
        "peak": peak_kib(),
        "workers": sorted(value for value in peaks.workers.values() if value),
    }


def apart(how: str, function: Callable[..., Any], *values: Any) -> Any:
    """The result of a function that runs in a process of its own: forked from this one, or spawned."""
    with ProcessPoolExecutor(1, multiprocessing.get_context(how)) as pool:
        return pool.submit(function, *values).result()


def compare_rates(arguments: argparse.Namespace, folder: str) -> None:
    # Imported once. A forked process has no answer of an earlier round in the tokenizer's memory.
    import trl  # noqa: F401
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(arguments.tokenizer)
    print(f"rows a second of processor time, on {processor_name()}; medians of {arguments.rounds} rounds")
    for data in map(Path, arguments.data):
        paths = [warmup_file(data, Path(folder)), data]
        rates: dict[Any, list[float]] = {our_seconds: [], trl_seconds: []}
        for _ in range(arguments.rounds):
            for seconds_of, measured in rates.items():
                with tempfile.TemporaryDirectory(dir=folder) as own:
                    rows, seconds = apart("fork", seconds_of, tokenizer, paths, arguments.max_seq_len, Path(own))
                measured.append(rows / seconds)
        for way, measured in zip(("ours", "TRL"), rates.values(), strict=True):
            print(f"{data.stem}  {way:<6}{statistics.median(measured):>7.0f}  ({listed(measured, '.0f')})")
        ratios = [ours / theirs for ours, theirs in zip(*rates.values(), strict=True)]
        print(f"{data.stem}  ratio {statistics.median(ratios):>7.2f}  ({listed(ratios, '.2f')})", flush=True)


def compare_memory(arguments: argparse.Namespace, folder: str) -> None:
    print(f"largest resident memory in MiB, on {processor_name()}")
    for number in arguments.memory:
        path = Path(folder) / f"made-{number}.jsonl"
        with path.open("w", encoding="utf-8") as file:
            file.writelines(made_rows(number))
        size = path.stat().st_size
        with tempfile.TemporaryDirectory(dir=folder) as own:
            result = apart("spawn", memory_of, path, arguments, Path(own))
        path.unlink()
        workers = [value / 1024 for value in result["workers"]]
        print(
            f"{number:>9,} rows of {size / number:.0f} bytes: {result['peak'] / 1024:.0f} (before the first row "
            f"{result['before'] / 1024:.0f}); workers: {listed(workers, '.0f') or 'none'}; "
            f"{result['pairs'] / result['seconds']:.0f} pairs/s",
            flush=True,
        )


def start_seconds(encoder: Any, *, alone: bool) -> float:
    """Processor time of a process that starts, encodes one text and ends.

    Args:
        alone: it imports what tokenising needs; else what a rank of a run imports, too.
    """
    code = "import minimind.data.streaming.builder, pickle, sys; pickle.load(sys.stdin.buffer).encode_text('A text.')"
    if not alone:
        code = f"import minimind.training.run; {code}"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with starting_workers() if alone else contextlib.nullcontext():
        subprocess.run([sys.executable, "-c", code], input=pickle.dumps(encoder), capture_output=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def compare_starts(arguments: argparse.Namespace, folder: str) -> None:
    from transformers import AutoTokenizer

    encoder = build_encoder(AutoTokenizer.from_pretrained(arguments.tokenizer), EncodingOptions(mask="text"))
    print(f"processor seconds of a start, on {processor_name()}; medians of {arguments.rounds} rounds")
    rounds = [[start_seconds(encoder, alone=alone) for alone in (True, False)] for _ in range(arguments.rounds)]
    for name, measured in zip(("to tokenise", "as a rank"), zip(*rounds, strict=True), strict=True):
        print(f"{name:<12}{statistics.median(measured):>6.2f}  ({listed(measured, '.2f')})")
    ratios = [rank / alone for alone, rank in rounds]
    print(f"{'ratio':<12}{statistics.median(ratios):>6.2f}  ({listed(ratios, '.2f')})")


def listed(values: Sequence[float], form: str) -> str:
    return ", ".join(format(value, form) for value in values)


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parse(argv)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        compare = compare_starts if arguments.start else compare_memory if arguments.memory else compare_rates
        compare(arguments, folder)


if __name__ == "__main__":
    main()
