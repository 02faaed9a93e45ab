"""The same run by each launcher, on one machine and on two.

The two machines are network namespaces with their own address, host name and /dev/shm, joined by a virtual cable.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from minimind import demo
from minimind.ranks.exits import CRASHED, FAILED
from tests.distributed.launching import REPO, Launch, environment, free_port, launch, metrics, train

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(600)]

EXACT = ("step", "loss", "grad_norm", "rewards/margins", "logps/chosen", "logps/rejected")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "pairs.jsonl"
    path.write_text("".join(demo.TRAIN_PATH.read_text(encoding="utf-8").splitlines(keepends=True)[:24]))
    return path


def flags(data: Path, save_dir: Path, *more: object) -> list[str]:
    given = (
        *("--deepspeed", "ds_configs/zero3.json"),
        *("--data_path", data, "--tokenizer_path", demo.TOKENIZER_PATH, "--from_weight", demo.WEIGHT_PATH),
        *("--dtype", "float32", "--learning_rate", 1e-3, "--batch_size", 2, "--log_interval", 1),
        # The rate of a step does not depend on how many follow.
        *("--lr_schedule", "constant", "--save_dir", save_dir, *more),
    )
    return list(map(str, given))


def curve(folder: Path) -> list[list[float]]:
    return [[entry[name] for name in EXACT] for entry in metrics(folder)]


def steps_of(folder: Path) -> int:
    """The number of logged steps."""
    path = folder / "metrics.jsonl"
    return path.read_text().count('"loss": ') if path.exists() else 0


@pytest.fixture(scope="module")
def one_node(data, tmp_path_factory):
    """The curve of two ranks that the deepspeed launcher starts on one machine."""
    folder = tmp_path_factory.mktemp("one_node")
    train(*flags(data, folder), config="zero3", ranks=2).succeeded()
    return curve(folder)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Node:
    """A machine of its own, as far as the ranks can tell: its namespace and its address."""

    name: str
    address: str

    def command(self, number: int, hide: Path | None, port: int, master: str, hostfile: Path, script: str) -> list[str]:
        """The launcher on this node, for one rank; `hide` is a folder that this node does not see."""
        own = f"mount -t tmpfs none /dev/shm && hostname {self.name}"
        own += f" && mount -t tmpfs none {hide}" if hide is not None else ""
        return [
            *("ip", "netns", "exec", self.name, "unshare", "--mount", "--uts", "sh", "-c", f'{own} && exec "$@"', "sh"),
            *("deepspeed", "--hostfile", str(hostfile), "--no_ssh", "--node_rank", str(number)),
            *("--master_addr", master, "--master_port", str(port), script),
        ]


@pytest.fixture(scope="module")
def nodes() -> Iterator[list[Node]]:
    """Two nodes that reach each other and nothing else."""
    if not (shutil.which("ip") and shutil.which("unshare")):
        pytest.skip("network namespaces need the commands ip (Debian: iproute2) and unshare")
    names = [f"mm{os.getpid()}{letter}" for letter in "ab"]
    subnet = os.getpid() % 250
    made = [Node(name=name, address=f"10.213.{subnet}.{number}") for number, name in enumerate(names, start=1)]
    commands = [
        *(f"ip netns add {node.name}" for node in made),
        f"ip link add cable netns {names[0]} type veth peer name cable netns {names[1]}",
        *(f"ip -n {node.name} addr add {node.address}/24 dev cable" for node in made),
        *(f"ip -n {node.name} link set {device} up" for node in made for device in ("lo", "cable")),
        f"ip netns exec {names[0]} unshare --mount --uts mount -t tmpfs none /dev/shm",
    ]
    try:
        for command in commands:
            done = subprocess.run(command.split(), capture_output=True, text=True, check=False)
            if done.returncode:
                pytest.skip(f"network namespaces cannot be made here: `{command}` says {done.stderr.strip()}")
        yield made
    finally:
        for node in made:  # the cable goes with them
            subprocess.run(["ip", "netns", "del", node.name], capture_output=True, check=False)


@contextlib.contextmanager
def on_both(
    nodes: list[Node], folder: Path, *arguments: str, hide: Path | None = None, script: str = "launch/train_dpo.py"
) -> Iterator[list[subprocess.Popen]]:
    """One rank on each node, output in `folder`/0 and 1; the second node does not see the folder `hide`."""
    hostfile, port = folder / "hostfile", free_port()
    hostfile.write_text("".join(f"{node.name} slots=1\n" for node in nodes))
    started = []
    try:
        for number, node in enumerate(nodes):
            command = node.command(number, hide if number else None, port, nodes[0].address, hostfile, script)
            with (folder / str(number)).open("w") as output:
                started.append(
                    subprocess.Popen(
                        [*command, *arguments],
                        cwd=REPO,
                        env={**environment(), "GLOO_SOCKET_IFNAME": "cable"},
                        stdout=output,
                        stderr=subprocess.STDOUT,
                        start_new_session=True,
                    )
                )
        yield started
    finally:
        for process in started:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, 9)
            process.wait()


def ends(processes: list[subprocess.Popen], folder: Path, timeout: float = 200) -> list[Launch]:
    until = time.monotonic() + timeout
    done = []
    for number, process in enumerate(processes):
        try:
            status = process.wait(max(0.1, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            raise AssertionError(f"took more than {timeout} s:\n{(folder / str(number)).read_text()[-6000:]}") from None
        done.append(Launch(status=status, output=(folder / str(number)).read_text()))
    return done


def test_two_nodes_take_the_steps_of_one_and_a_lost_node_ends_the_other(nodes, data, one_node, tmp_path):
    """The lost node's ranks are killed within the run; the other ends within a minute."""
    out = tmp_path / "out"
    with on_both(nodes, tmp_path, *flags(data, out, "--epochs", 500)) as launched:
        until = time.monotonic() + 200
        while steps_of(out) < len(one_node) and time.monotonic() < until:
            time.sleep(0.1)
        assert steps_of(out) >= len(one_node), (tmp_path / "0").read_text()[-6000:]
        os.killpg(launched[1].pid, 9)
        (first,) = ends(launched[:1], tmp_path, timeout=60)
    assert first.status != 0
    assert re.search(rf"LaunchError: rank 1 \(process \d+ on {nodes[1].name}\) is lost: ", first.output), first.output
    assert curve(out)[: len(one_node)] == one_node


@pytest.mark.long
def test_file_missing_on_one_node_is_an_error_before_loading(nodes, data, tmp_path):
    with on_both(nodes, tmp_path, *flags(data, tmp_path / "out"), hide=data.parent) as launched:
        first, second = ends(launched, tmp_path)
    assert first.status != 0
    assert second.status != 0
    here, there = (node.name for node in nodes)
    assert f"--data_path {data}: exists for rank 0 on {here}, but not for rank 1 on {there}" in first.output
    assert "Traceback" not in first.output + second.output
    assert not (tmp_path / "out").exists()


@pytest.mark.long
def test_error_of_a_rank_is_known_on_the_other_node(nodes, tmp_path):
    with on_both(nodes, tmp_path, "crash", script="tests/distributed/workers/failing.py") as launched:
        first, second = ends(launched, tmp_path)
    assert (first.status, second.status) == (FAILED, CRASHED)
    assert "On rank 1:\nTraceback" in second.output
    lost = rf"rank 1 \(process \d+ on {nodes[1].name}\) is lost: ZeroDivisionError: integer division"
    assert re.search(lost, first.output), first.output


@pytest.mark.long
def test_srun_takes_the_same_steps(data, one_node, tmp_path):
    """Two processes with what srun sets, which is all that a rank sees of Slurm."""
    step = {
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_STEP_ID": "0",
        "SLURM_NTASKS": "2",
        "SLURM_JOB_NODELIST": "localhost",
    }
    started = [
        subprocess.Popen(
            [
                sys.executable,
                "launch/train_dpo.py",
                *flags(data, tmp_path / "out"),
            ],
            cwd=REPO,
            env={
                **environment(),
                **step,
                "SLURM_PROCID": str(rank),
                "SLURM_LOCALID": str(rank),
                "MASTER_PORT": str(port),
            },
            stdout=(tmp_path / str(rank)).open("w"),
            stderr=subprocess.STDOUT,
        )
        for port in [free_port()]
        for rank in (0, 1)
    ]
    try:
        for ended in ends(started, tmp_path):
            ended.succeeded()
    finally:
        for process in started:
            process.kill()
            process.wait()
    assert curve(tmp_path / "out") == one_node


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    path = tmp_path_factory.mktemp("texts") / "texts.jsonl"
    rows = map(json.loads, demo.TRAIN_PATH.read_text(encoding="utf-8").splitlines())
    path.write_text("".join(json.dumps({"text": row["chosen"][-1]["content"]}) + "\n" for row in rows))
    return path


# Shards of 256 rows, which are removed behind the run; the data begin anew four times.
STEPS, SAVED = 96, 32


def stream_flags(data: Path, save_dir: Path, *more: object) -> list[str]:
    given = (
        *("--deepspeed", "ds_configs/zero1.json", "--data_path", data, "--max_seq_len", 24, "--num_workers", 0),
        *("--hidden_size", 32, "--num_hidden_layers", 1, "--dtype", "float32", "--learning_rate", 1e-3),
        *("--batch_size", 8, "--accumulation_steps", 2, "--log_interval", 1, "--max_steps", STEPS),
        *("--streaming", 1, "--shard_tokens", 1500, "--window_tokens", 4000, "--keep_windows", 2),
        *("--save_interval", SAVED, "--save_dir", save_dir, *more),
    )
    return list(map(str, given))


def stream_curve(folder: Path) -> list[list[float]]:
    names = ("step", "loss", "grad_norm", "learning_rate", "token_accuracy")
    return [[entry[name] for name in names] for entry in metrics(folder)]


@pytest.fixture(scope="module")
def streamed(texts, tmp_path_factory):
    """The curve of two ranks of one machine that stream."""
    folder = tmp_path_factory.mktemp("streamed")
    given = stream_flags(texts, folder, "--cache_dir", folder / "cache")
    launch("launch/pretrain.py", *given, ranks=2).succeeded()
    return stream_curve(folder)


@pytest.mark.long
@pytest.mark.parametrize("shared", [True, False], ids=["one_folder_of_shards", "each_its_own"])
def test_two_nodes_that_stream_and_are_killed_take_the_steps_of_one(nodes, texts, streamed, shared, tmp_path):
    """Where each has its own folder, the second node comes back without the shards that it had."""
    out, cache = tmp_path / "out", tmp_path / "cache"
    cache.mkdir()
    flags = stream_flags(texts, out, "--cache_dir", cache)
    options = {"hide": None if shared else cache, "script": "launch/pretrain.py"}
    with on_both(nodes, tmp_path, *flags, **options) as launched:
        until = time.monotonic() + 200
        while steps_of(out) < SAVED + 4 and time.monotonic() < until:
            time.sleep(0.01)
        # Ranks are in sessions of their own.
        found = [psutil.Process(process.pid) for process in launched]
        found += [child for process in found for child in process.children(recursive=True)]
        for process in found:
            process.suspend()
        for process in found:
            process.kill()
    assert SAVED + 4 <= steps_of(out) < STEPS, (tmp_path / "0").read_text()[-6000:]
    with on_both(nodes, tmp_path, *flags, "--from_resume", "1", **options) as launched:
        first, second = ends(launched, tmp_path)
    assert f"resuming after step {SAVED}" in first.succeeded().output
    second.succeeded()
    assert stream_curve(out) == streamed
