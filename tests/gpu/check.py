"""The acceptance test of a GPU: `make gpu-check` runs every check in a process of its own and prints one page.

    CHECKS -> run_check, one after another, each with a time limit -> Outcome -> page, exit status

A check that fails or hangs does not stop the others. All of them together end within ten minutes. Where there is no GPU
nothing runs, and the page says so.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from tests.conftest import REPO, SHARED
from tests.gpu.support import FIGURE

OUT = Path("out/gpu-check")
# Seconds of all checks together.
TOTAL = 580.0
OK, FAILED, SKIPPED, SLOW, LEFT_OUT = "ok", "FAILED", "skipped", "TOO SLOW", "NOT RUN"
# States with which the GPU is not accepted.
BAD = (FAILED, SLOW, LEFT_OUT)
_WIDEST = 60


@dataclasses.dataclass(frozen=True, kw_only=True)
class Check:
    """One line of the page.

    Attributes:
        name: what is checked; unique.
        arguments: of the Python interpreter.
        seconds: the time limit.
        remedy: what to do if it fails.
        figure: text for the page from the folder that the check wrote into; None: lines that begin with `FIGURE`.
    """

    name: str
    arguments: tuple[str, ...]
    seconds: float
    remedy: str
    figure: Callable[[Path], str] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came out of a check; `figure` is a number, the error or the reason."""

    check: Check
    state: str
    figure: str = ""
    seconds: float = 0.0


def pytest_check(name: str, selected: str, seconds: float, remedy: str) -> Check:
    """A check that is tests of a file: "file.py" or "file.py -k expression"."""
    file, *options = selected.split(" ", 2)
    # The machine of a GPU may lack the plugins that pyproject.toml names options of.
    plain = ("-m", "pytest", "-q", "-s", "-o", "addopts=", "-p", "no:cacheprovider")
    return Check(name=name, arguments=(*plain, f"tests/gpu/{file}", *options), seconds=seconds, remedy=remedy)


def bench_check() -> Check:
    """The benchmark of this project alone, on real pairs where they lie beside the checkout."""
    data = ("--data", str(SHARED / "data/dpo_zh.jsonl"), "--tokenizer", str(SHARED / "tokenizers/minimind3"))
    sizes = "--hidden_size 768 --num_hidden_layers 16 --batch_size 16 --warmup_steps 2 --steps 4 --rounds 1".split()
    module = ("-m", "tests.benchmarks.bench", "--peers", "ours,ours-cached", "--timeout", "100")
    return Check(
        name="make bench, 768 x 16",
        arguments=(*module, *sizes, *(data if SHARED.is_dir() else ())),
        seconds=240,
        remedy="profile: tests/benchmarks/README.md",
        figure=bench_figure,
    )


def bench_figure(folder: Path) -> str:
    """Rates and MFU of the trainers in the benchmark's record."""
    (path,) = folder.glob("bench-*.json")
    lines = json.loads(path.read_text(encoding="utf-8"))["lines"]
    return "; ".join(f"{one['trainer']} {one['pairs_per_second']:.0f} pairs/s, MFU {one['mfu']:.0%}" for one in lines)


ATTENTION = "test_attention_backends.py -k"
CHECKS = (
    pytest_check("contexts", "test_start.py", 60, "an import touches the GPU: find it with cuda-gdb or by bisection"),
    pytest_check(
        "golden models, float32", "test_golden_models.py -k float32", 90, "is TF32 on? see torch.backends.cuda"
    ),
    pytest_check("golden models, bfloat16", "test_golden_models.py -k bfloat16", 90, "compare with --kernels torch"),
    pytest_check("head", "test_log_probs.py", 60, "objective/log_probs.py: compare block by block"),
    pytest_check("attention, sdpa", f"{ATTENTION} sdpa or timer", 90, "torch's SDPA differs: try another torch"),
    pytest_check("attention, varlen", f"{ATTENTION} varlen", 90, "--attention sdpa; model/varlen_attention.py"),
    pytest_check("experts", "test_moe.py", 90, "FIRST_CORRECT_TORCH in model/grouped_linear.py"),
    pytest_check("host waits", "test_training.py -k waits", 90, "set_sync_debug_mode names the line"),
    pytest_check(
        "zero1, 2, 3, reference", "test_training.py -k demo or stages or shard", 150, "see the log's last lines"
    ),
    pytest_check("MiniMind's steps", "test_training.py -k minimind_s", 120, "is TF32 on? compare stage by stage"),
    pytest_check("resume", "test_training.py -k resumed", 150, "with sdpa too? then a kernel adds in another order"),
    bench_check(),
    pytest_check("attention, flex", f"{ATTENTION} flex or chosen", 180, "--attention varlen or sdpa"),
)


def run_check(check: Check, limit: float, folder: Path) -> Outcome:
    """Run a check in a process group of its own, which is ended completely after `limit` seconds."""
    folder.mkdir(parents=True, exist_ok=True)
    report, log = folder / "tests.xml", folder / "log.txt"
    for old in (report, *folder.glob("bench-*.json")):
        old.unlink(missing_ok=True)
    is_pytest = check.arguments[:2] == ("-m", "pytest")
    written = ("--junitxml", str(report)) if is_pytest else ("--out", str(folder)) if check.figure else ()
    started = time.monotonic()
    with log.open("w", encoding="utf-8") as file:
        process = subprocess.Popen(
            [sys.executable, *check.arguments, *written],
            cwd=REPO,
            env={**os.environ, "PYTHONPATH": f"{REPO}:{os.environ.get('PYTHONPATH', '')}"},
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            status: int | None = process.wait(limit)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            # Also ranks that a check has left behind.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    seconds = time.monotonic() - started
    if status is None:
        return Outcome(check=check, state=SLOW, figure=f"longer than {limit:.0f} s; {log}", seconds=seconds)
    try:
        state, figure = _read(check, status, report if is_pytest else None, folder)
    except (OSError, ValueError, KeyError, ElementTree.ParseError) as error:
        state, figure = FAILED, f"no result: {type(error).__name__}: {error}"
    return Outcome(check=check, state=state, figure=figure, seconds=seconds)


def _read(check: Check, status: int, report: Path | None, folder: Path) -> tuple[str, str]:
    """State and figure of a check that has ended."""
    text = (folder / "log.txt").read_text(encoding="utf-8", errors="replace")
    figures = [line[len(FIGURE) :] for line in text.splitlines() if line.startswith(FIGURE)]
    if report is not None and report.is_file():
        cases = list(ElementTree.parse(report).iter("testcase"))
        wrong = [(case, found) for case in cases for kind in ("failure", "error") for found in case.iter(kind)]
        skipped = [found.get("message", "") for case in cases for found in case.iter("skipped")]
        if wrong:
            case, found = wrong[0]
            first = next(iter(found.get("message", "").strip().splitlines()), "")
            return FAILED, f"{len(wrong)} of {len(cases)}: {case.get('name')}: {first}"
        if status == 0 and cases and len(skipped) == len(cases):
            return SKIPPED, skipped[0]
        if status == 0:
            figures.append(f"{len(cases) - len(skipped)} tests" + (f", {len(skipped)} skipped" if skipped else ""))
    if status != 0:
        last = next((line for line in reversed(text.splitlines()) if line.strip()), "")
        return FAILED, f"status {status}: {last.strip()}"
    return OK, check.figure(folder) if check.figure is not None else "; ".join(figures)


def run_all(checks: Sequence[Check], total: float, out: Path) -> list[Outcome]:
    """Run all checks within `total` seconds; those that no time is left for are not run."""
    outcomes, end = [], time.monotonic() + total
    for check in checks:
        left = end - time.monotonic()
        print(f"{check.name} ...", flush=True)
        if left <= 0:
            outcomes.append(Outcome(check=check, state=LEFT_OUT, figure="no time was left"))
            continue
        folder = out / "".join(letter if letter.isalnum() else "-" for letter in check.name)
        outcomes.append(run_check(check, min(check.seconds, left), folder))
    return outcomes


def page(title: str, outcomes: Sequence[Outcome]) -> str:
    """The page: a line for each check, and a verdict."""
    rows = [("check", "result", "seconds", "figure", "if it fails")]
    for one in outcomes:
        remedy = one.check.remedy if one.state in BAD else ""
        figure = one.figure if len(one.figure) <= _WIDEST or one.state in BAD else f"{one.figure[: _WIDEST - 3]}..."
        rows.append((one.check.name, one.state, f"{one.seconds:.0f}", figure, remedy))
    widths = [min(_WIDEST, max(len(row[column]) for row in rows)) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    counts = {state: sum(one.state == state for one in outcomes) for state in (OK, SKIPPED, *BAD)}
    verdict = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    return "\n".join([title, "", *lines, "", verdict])


def exit_status(outcomes: Sequence[Outcome]) -> int:
    """0 unless a check is bad. A check that is skipped has a reason: no GPU, one GPU, no golden numbers."""
    return int(any(one.state in BAD for one in outcomes))


def main() -> int:
    """Run all checks, print the page and write it to `OUT`; returns the exit status."""
    versions = f"torch {torch.__version__}, CUDA {torch.version.cuda}"
    if torch.cuda.is_available():
        gpus = torch.cuda.device_count()
        properties = torch.cuda.get_device_properties(0)
        title = f"{gpus} x {properties.name}, {properties.total_memory / 2**30:.0f} GiB, {versions}"
        outcomes = run_all(CHECKS, TOTAL, OUT)
    else:
        title = f"no GPU here, {versions}"
        outcomes = [Outcome(check=check, state=SKIPPED, figure="no CUDA device here") for check in CHECKS]
    text = page(title, outcomes)
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / "page.txt").write_text(f"{text}\n", encoding="utf-8")
    print(f"\n{text}\nLogs: {OUT}")
    return exit_status(outcomes)


if __name__ == "__main__":
    sys.exit(main())
