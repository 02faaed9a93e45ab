"""The compared trainers, and one round of a trainer: runs its command and reads its result.

name -> Peer -> run_peer -> Round (seconds of timed steps, memory, start-up, parts of a step)
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from tests.benchmarks.common import FOLDER, Task
from tests.benchmarks.rank import BIND

HERE = Path(__file__).resolve().parent
REPO = HERE.parents[1]
CORES = len(os.sched_getaffinity(0))
# Rank of all trainers' adapters, in all linear layers but the head.
RANK = 16
# Options of this project's trainer that are not its flags: they select how it is measured.
WATCHED = ("timers", "profiled")


class PeerError(Exception):
    """A trainer did not run; the text is one line with the reason."""


class NotHereError(PeerError):
    """The trainer is for other machines."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Peer:
    """One configuration of one trainer.

    Attributes:
        module: module in this folder; `ours` takes `options` as flags of the training script.
        ranks: number of ranks under the DeepSpeed launcher; 0: plain `python`.
        bound: each rank has one core and one thread; otherwise the ranks share all cores.
        batches: micro-batches of a global step over all ranks.
        live_reference: the reference's forward is part of a step.
        adapters: it trains low-rank adapters, not all weights.
        dtype: dtype of its matrix products.
    """

    module: str
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    ranks: int = 0
    bound: bool = False
    batches: int = 1
    live_reference: bool = True
    adapters: bool = False
    dtype: str = "bfloat16"


def _ours(*, ranks: int = 1, live_reference: bool = True, bound: bool = False, batches: int = 1, **flags: Any) -> Peer:
    return Peer(
        module="ours",
        options={**flags, "accumulation_steps": batches // ranks},
        ranks=ranks,
        bound=bound,
        batches=batches,
        live_reference=live_reference,
        adapters="lora_rank" in flags,
    )


def _trl() -> dict[str, Peer]:
    """TRL with every combination of ZeRO-2 under the launcher, gradient checkpointing, and a precomputed reference."""
    peers = {}
    for zero2 in (False, True):
        for precomputed in (False, True):
            for checkpointed in (False, True):
                parts = (("zero2", zero2), ("precomputed", precomputed), ("checkpointed", checkpointed))
                peers["-".join(["trl", *(name for name, on in parts if on)])] = Peer(
                    module="trl_dpo",
                    options={"zero2": zero2, "gradient_checkpointing": checkpointed, "precomputed": precomputed},
                    ranks=int(zero2),
                    live_reference=not precomputed,
                )
    return peers


def _trl_adapters() -> dict[str, Peer]:
    """TRL with peft's adapters: the reference is its model without them too, so there is one model."""
    peers = {}
    for name in ("trl", "trl-zero2", "trl-checkpointed"):
        peer = _trl()[name]
        peers[name.replace("trl", "trl-lora")] = dataclasses.replace(
            peer, options={**peer.options, "lora_rank": RANK}, adapters=True
        )
    return peers


def _float32(peer: Peer) -> Peer:
    return dataclasses.replace(peer, options={**peer.options, "dtype": "float32"}, dtype="float32")


PEERS: dict[str, Peer] = {
    "ours": _ours(),
    "ours-fp32": dataclasses.replace(_ours(dtype="float32"), dtype="float32"),
    "ours-compiled": _ours(use_compile=1),
    "ours-checkpointed": _ours(gradient_checkpointing=1),
    "ours-cached": _ours(reference="cached", live_reference=False),
    "ours-lora": _ours(lora_rank=RANK),
    "ours-qlora": _ours(lora_rank=RANK, quantize="nf4"),
    # The same global batches of two micro-batches: one after the other on one core, or each on a core of its own.
    "ours-1core": _ours(bound=True, batches=2),
    "ours-2ranks": _ours(ranks=2, bound=True, batches=2),
    "minimind-bf16": Peer(module="minimind_loop", options={"dtype": "bfloat16"}),
    "minimind-fp32": Peer(module="minimind_loop", options={"dtype": "float32"}, dtype="float32"),
    **_trl(),
    **_trl_adapters(),
    # Without bfloat16 instructions TRL is faster in float32.
    "trl-fp32": _float32(_trl()["trl"]),
    "trl-lora-fp32": _float32(_trl_adapters()["trl-lora"]),
}


def task_of(peer: Peer, folder: Path, *, batch_size: int, max_seq_len: int, warmup_pairs: int, pairs: int) -> Task:
    """The task of a trainer over the first pairs of the file: at least `warmup_pairs` untimed, the rest timed."""
    together = batch_size * peer.batches
    warmup_steps = math.ceil(warmup_pairs / together)
    return Task(
        folder=str(folder),
        batch_size=batch_size,
        warmup_steps=warmup_steps,
        steps=pairs // together - warmup_steps,
        max_seq_len=max_seq_len,
        options=peer.options,
    )


def run_peer(peer: Peer, task: Task, timeout: float) -> dict[str, Any]:
    """Run one round. Returns the seconds of the timed steps, the memory, and other values of the trainer.

    Raises:
        NotHereError: it cannot run here.
        PeerError: it failed, or took too long.
    """
    if peer.bound and torch.cuda.is_available():
        raise NotHereError("compares ranks bound to cores; this machine trains on a GPU")
    if peer.bound and peer.ranks > CORES:
        raise NotHereError(f"needs {peer.ranks} cores; there are {CORES}")
    if task.steps < 1:
        raise PeerError("its global batch leaves no step to time; give more --steps")
    (task.path / "task.json").write_text(json.dumps(dataclasses.asdict(task)))
    for old in (*task.path.glob("watch-*.json"), task.path / "result.json"):
        old.unlink(missing_ok=True)
    command = [str(HERE / "rank.py"), f"tests.benchmarks.{peer.module}"]
    if peer.module == "ours":
        for used in ("ours", "warm"):
            shutil.rmtree(task.path / used, ignore_errors=True)
        # Tokens are cached, the reference's log-probs are not: every round fills that cache again.
        shutil.copytree(task.path / "cache", task.path / "warm")
        command += _flags(task)
    started = time.time()
    _run(peer, task, command, timeout)
    return _read_ours(peer, task, started) if peer.module == "ours" else _read_json(task.path / "result.json")


def _flags(task: Task) -> list[str]:
    flags = {
        "deepspeed": REPO / "ds_configs" / "zero2.json",
        "data_path": task.path / "pairs.jsonl",
        "tokenizer_path": task.path / "tokenizer",
        "from_weight": task.path / "start.pth",
        "cache_dir": task.path / "warm",
        "max_seq_len": task.max_seq_len,
        "batch_size": task.batch_size,
        # The loss and the rows of the other trainers, whatever the defaults of the generation are.
        "average_log_prob": 1,
        "beta": 0.1,
        "empty_think_ratio": 1,
        "max_steps": task.warmup_steps + task.steps,
        "shuffle": 0,
        "log_interval": 1,
        "save_interval": 0,
        "save_dir": task.path / "ours",
        **{name: value for name, value in task.options.items() if name not in WATCHED},
    }
    return [part for flag, value in flags.items() for part in (f"--{flag}", str(value))]


def _run(peer: Peer, task: Task, command: list[str], timeout: float) -> None:
    binaries, port = Path(sys.executable).parent, _free_port()
    # As a module: where packages lie in a folder of their own, the command is not beside the interpreter.
    launcher = [
        sys.executable,
        "-m",
        "deepspeed.launcher.runner",
        "--num_gpus",
        str(peer.ranks),
        "--master_port",
        str(port),
    ]
    env = {
        **os.environ,
        FOLDER: str(task.path),
        "OMP_NUM_THREADS": str(1 if peer.bound else max(1, CORES // max(1, peer.ranks))),
        # The user's own folders after this one: a peer may lie in one, out of the virtual environment.
        "PYTHONPATH": os.pathsep.join([str(REPO), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "PATH": f"{binaries}:{os.environ['PATH']}",
    }
    if peer.bound:
        env[BIND] = "1"
    process = subprocess.Popen(
        [*(launcher if peer.ranks else [sys.executable]), *command],
        cwd=REPO,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=timeout)
    except BaseException as error:
        # The trainer and its ranks are one process group, which is ended completely before the next trainer is timed.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if isinstance(error, subprocess.TimeoutExpired):
            raise PeerError(f"took more than {timeout:.0f} s") from None
        raise
    finally:
        # DeepSpeed's CPU ranks leave shared memory behind; this project's ranks remove theirs.
        for buffer in Path("/dev/shm").glob(f"deepspeed_allreduce_buffer_{os.getuid()}_*_{port}_*"):
            buffer.unlink(missing_ok=True)
    if process.returncode:
        (task.path / "failed.txt").write_text(output)
        raise PeerError(_why(output) or f"ended with status {process.returncode}")


def _why(output: str) -> str:
    """The last line of an error message in the output; the first one if several ranks print it."""
    lines = [line.strip() for line in output.splitlines()]
    return next((line for line in lines if line.split(":")[0].split(".")[-1].endswith("Error")), "")[:300]


def _read_ours(peer: Peer, task: Task, started: float) -> dict[str, Any]:
    watched = [_read_json(task.path / f"watch-{rank}.json") for rank in range(peer.ranks)]
    metrics = [json.loads(line) for line in (task.path / "ours" / "metrics.jsonl").read_text().splitlines()]
    steps = [entry for entry in metrics if "pairs_per_second" in entry][task.warmup_steps :]
    together = task.batch_size * peer.batches
    marks, reached = watched[0]["marks"], started
    startup = {}
    for name, when in sorted(marks.items(), key=lambda mark: mark[1]):
        if when <= marks["first step"]:
            startup[name], reached = when - reached, when
    largest = max(watched, key=lambda one: one["peak_memory_gib"])
    return {
        "seconds": [together / step["pairs_per_second"] for step in steps],
        **{name: value for name, value in largest.items() if name.endswith("_gib")},
        "before_seconds": watched[0]["before_seconds"],
        "startup": startup,
        "first_step_seconds": marks["first step"] - started,
        "first_step_cpu_seconds": sum(one["first_step_cpu_seconds"] for one in watched),
        "steps": watched[0]["steps"],
        "kinds": watched[0]["kinds"],
    }


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
