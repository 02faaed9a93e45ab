"""The benchmark itself, on a model small enough for a test: real launches, a table, and a trainer that cannot run."""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
import types

import pytest

from tests.benchmarks import peers
from tests.benchmarks.bench import measure
from tests.benchmarks.peers import PEERS, NotHereError, PeerError, _why, run_peer, task_of
from tests.conftest import REPO


@pytest.mark.long
@pytest.mark.distributed
@pytest.mark.timeout(900)
def test_benchmark_of_two_trainers_and_one_that_cannot_run(tmp_path):
    """Two batches of pairs: one to warm up, one to time. A global batch of two leaves nothing to time."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "max_seq_len": 48, "batch_size": 4, "steps": 1, "rounds": 1}
    done = subprocess.run(
        [
            *(sys.executable, "-m", "tests.benchmarks.bench", "--peers", "ours,ours-1core,minimind-bf16"),
            *(part for name, value in sizes.items() for part in (f"--{name}", str(value))),
            # Three launches. A launch that hangs is ended by its own time limit, which knows its ranks.
            *("--out", str(tmp_path), "--timeout", "200"),
        ],
        cwd=REPO,
        capture_output=True,
        text=True,
        timeout=850,
    )
    # The status shows that a configuration of this project did not run; the others did.
    assert done.returncode == 1, done.stdout + done.stderr
    assert "ours-1core did not run: its global batch leaves no step to time" in done.stdout
    record = json.loads((tmp_path / "bench-train.json").read_text())
    assert list(record["did_not_run"]) == ["ours-1core"]
    lines = {line["trainer"]: line for line in record["lines"]}
    assert set(lines) == {"ours", "minimind-bf16"}
    for line in lines.values():
        # Both count the same four pairs.
        assert line["tokens_per_second"] / line["pairs_per_second"] == pytest.approx(
            lines["ours"]["tokens_per_second"] / lines["ours"]["pairs_per_second"]
        )
        assert 0 < line["above_memory_gib"] < line["peak_memory_gib"]
    parts = record["seconds_of_a_step"]
    assert set(parts) == {"data", "reference", "policy forward", "backward", "optimizer", "everything else"}
    assert all(seconds > 0 for seconds in parts.values())
    kinds = record["seconds_by_kind"]
    assert set(kinds) == {"matrix products", "attention", "optimizer", "everything else"}
    assert all(seconds > 0 for seconds in kinds.values())
    assert "of the GEMM rate" in done.stdout
    startup = record["seconds_to_first_step"]
    assert next(iter(startup)) == "launcher"
    assert list(startup)[-1] == "first step"
    assert sum(startup.values()) == pytest.approx(lines["ours"]["first_step_seconds"])


def test_failed_profile_keeps_the_measured_rounds(capsys):
    def run(name, **options):
        if options:
            raise PeerError("took too long")
        return {"seconds": [1.0]}

    arguments = argparse.Namespace(peers=["ours"], rounds=2)
    measured = measure(types.SimpleNamespace(arguments=arguments, run=run))
    assert len(measured.rounds["ours"]) == 2
    assert (measured.failed, measured.steps, measured.kinds) == (["ours"], [], {})
    assert "the parts of our steps: took too long" in capsys.readouterr().out


def test_trainer_for_other_machines_is_not_a_failure(tmp_path, monkeypatch):
    """On a GPU or a single core no ranks can be bound to cores; the benchmark still ends with status 0."""
    monkeypatch.setattr(peers, "CORES", 1)
    task = task_of(PEERS["ours-2ranks"], tmp_path, batch_size=4, max_seq_len=128, warmup_pairs=8, pairs=24)
    with pytest.raises(NotHereError):
        run_peer(PEERS["ours-2ranks"], task, 1)


def test_one_core_and_two_ranks_take_the_same_global_batches(tmp_path):
    sizes = {"batch_size": 4, "max_seq_len": 128, "warmup_pairs": 4, "pairs": 28}
    one, two = (task_of(PEERS[name], tmp_path, **sizes) for name in ("ours-1core", "ours-2ranks"))
    # 28 pairs: three global batches of 8, one of them to warm up.
    assert (one.warmup_steps, one.steps) == (two.warmup_steps, two.steps) == (1, 2)
    assert (one.options["accumulation_steps"], two.options["accumulation_steps"]) == (2, 1)


def test_failed_trainer_gives_its_reason(tmp_path):
    task = task_of(PEERS["minimind-bf16"], tmp_path, batch_size=4, max_seq_len=128, warmup_pairs=4, pairs=8)
    with pytest.raises(PeerError, match="no_trainer"):
        run_peer(dataclasses.replace(PEERS["minimind-bf16"], module="no_trainer"), task, timeout=200)


def test_reason_is_the_last_line_with_an_error():
    error = "module.ConfigError: unrecognized argument: --x; see --help"
    assert _why(f"Traceback (most recent call last):\n  File x\n{error}\n[INFO] end") == error
    assert _why("killed") == ""
