"""What the tests of a GPU share: the device, figures for the page of `make gpu-check`, and runs of the training script.

MINIMIND_GPU_TESTS=cpu runs those that need no kernel of a GPU on the CPU: to try the tests themselves.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import REPO

DEVICE = torch.device(os.environ.get("MINIMIND_GPU_TESTS") or "cuda")
# What a line for the page begins with.
FIGURE = "FIGURE "

needs_gpu = [
    pytest.mark.gpu,
    pytest.mark.skipif(DEVICE.type == "cuda" and not torch.cuda.is_available(), reason="no CUDA device here"),
]


def figure(text: str) -> None:
    """Print a line for the page."""
    print(f"{FIGURE}{text}", flush=True)


def run_script(*arguments: object, timeout: float = 200, **variables: str) -> str:
    """Output of a Python command in a process of its own, which must succeed."""
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=REPO,
        env={**os.environ, "PYTHONPATH": f"{REPO}:{os.environ.get('PYTHONPATH', '')}", **variables},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return done.stdout


def train(config: str, **flags: object) -> str:
    """Output of a run of the training script, alone on its GPU, under a file of ds_configs/."""
    arguments = [part for name, value in flags.items() for part in (f"--{name}", value)]
    return run_script("launch/train_dpo.py", "--deepspeed", f"ds_configs/{config}.json", *arguments)


def logged(folder: Path, name: str = "loss") -> list[dict[str, Any]]:
    """Logged steps of a run."""
    entries = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [entry for entry in entries if name in entry]
