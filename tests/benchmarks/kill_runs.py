"""Kills a rank at random moments and resumes, many times: `python -m tests.benchmarks.kill_runs --runs 20`.

Every launch resumes from the checkpoints of the one before. Each must end with a non-zero status within a minute and
name the killed rank. At the end the metrics must equal those of an uninterrupted run bit for bit. Moments are drawn
from a seed: during the start, in a step, in the middle of a save. Either rank may be killed.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from minimind import demo
from tests.distributed.launching import metrics, train
from tests.distributed.running import Running

EXACT = ("step", "loss", "grad_norm", "learning_rate", "rewards/margins", "logps/chosen", "logps/rejected")


def flags(folder: Path, steps: int) -> tuple[object, ...]:
    data = folder / "pairs.jsonl"
    data.write_text("".join(demo.TRAIN_PATH.read_text(encoding="utf-8").splitlines(keepends=True)[:34]))
    return (
        *("--data_path", data, "--tokenizer_path", demo.TOKENIZER_PATH, "--from_weight", demo.WEIGHT_PATH),
        *("--dtype", "float32", "--learning_rate", 1e-3, "--epochs", steps, "--batch_size", 2, "--max_steps", steps),
        *("--save_interval", 2, "--log_interval", 1, "--deepspeed", "ds_configs/zero2.json"),
    )


def kill_once(arguments: tuple[object, ...], out: Path, moment: str, chance: random.Random) -> dict[str, object]:
    """Start one launch, kill a rank, and describe how the launch ended."""
    saved = out / "checkpoints"
    with Running(*arguments, "--save_dir", out, "--from_resume", 1) as run:
        run.wait_for(lambda: len(run.ranks) == 2)
        rank, extra = chance.choice((0, 1)), chance.uniform(0, 10 if moment == "start" else 0.5)
        if moment != "start":
            steps = out / "metrics.jsonl"
            run.wait_for(lambda: "step " in re.sub(r".*by default", "", run.output, flags=re.S) and steps.is_file())
        if moment == "save":
            before = set(saved.glob("step*"))
            run.wait_for(lambda: bool(set(saved.glob("step*")) - before))
        else:
            time.sleep(extra)
        run.ranks[rank].kill()
        killed = time.monotonic()
        done = run.ended(timeout=60)
    named = re.search(rf"LaunchError: rank {rank} \(.*", done.output)
    assert done.status != 0, done.output
    assert named or "return code = -9" in done.output, done.output
    said = named.group() if named else "return code = -9 (the launcher: before the ranks had met)"
    latest = (saved / "latest").read_text() if (saved / "latest").is_file() else "-"
    took = round(time.monotonic() - killed, 1)
    return {"moment": moment, "rank": rank, "status": done.status, "seconds": took, "latest": latest, "said": said}


def main(argv: Sequence[str] | None = None) -> None:
    """Print one line per kill, and whether the metrics equal those of the uninterrupted run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=160, help="of the run; enough for every launch to make some")
    given = parser.parse_args(argv)
    chance = random.Random(given.seed)
    moments = [("start", "step", "save", "step", "save")[number % 5] for number in range(given.runs)]
    chance.shuffle(moments)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        arguments = flags(folder, given.steps)
        kills = []
        for moment in moments:
            kills.append(kill_once(arguments, folder / "out", moment, chance))
            print(json.dumps(kills[-1]), flush=True)
        for name, more in (("out", ("--from_resume", 1)), ("whole", ("--save_interval", 0))):
            train(*arguments, *more, "--save_dir", folder / name, ranks=2, timeout=1200).succeeded()
        one, other = ([[entry[key] for key in EXACT] for entry in metrics(folder / name)] for name in ("out", "whole"))
    print(f"{len(kills)} kills, the slowest end after {max(float(str(kill['seconds'])) for kill in kills)} s; ", end="")
    print("the curve is the uninterrupted one" if one == other else "THE CURVE DIFFERS")
    raise SystemExit(one != other)


if __name__ == "__main__":
    main()
