"""A run that is stopped or killed and resumed several times has the metrics of the uninterrupted run."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from minimind import demo
from minimind.ranks.exits import PREEMPTED
from tests.benchmarks import kill_runs
from tests.distributed.launching import metrics, train
from tests.distributed.running import Running

# More than the time limits of running.py, so that those fail first and end the ranks.
pytestmark = [pytest.mark.distributed, pytest.mark.timeout(600)]

STEPS = 40
EXACT = ("step", "loss", "grad_norm", "learning_rate", "rewards/margins", "logps/chosen", "logps/rejected")


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
    """Flags of a run of 40 short steps in float32 that saves every second step."""
    data = tmp_path_factory.mktemp("interrupted") / "pairs.jsonl"
    lines = demo.TRAIN_PATH.read_text(encoding="utf-8").splitlines(keepends=True)
    data.write_text("".join(lines[:34]), encoding="utf-8")
    return (
        *("--data_path", data, "--tokenizer_path", demo.TOKENIZER_PATH, "--from_weight", demo.WEIGHT_PATH),
        *("--dtype", "float32", "--learning_rate", 1e-3, "--epochs", 5, "--batch_size", 2, "--max_steps", STEPS),
        *("--save_interval", 2, "--log_interval", 1),
    )


@pytest.fixture(scope="module")
def curve(flags, tmp_path_factory):
    """Metrics of the uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole")
    train(*flags, "--save_interval", 0, "--save_dir", folder, ranks=2).succeeded()
    return [[entry[name] for name in EXACT] for entry in metrics(folder)]


def go_on(flags, folder: Path, **options) -> Running:
    arguments = (*flags, "--deepspeed", "ds_configs/zero2.json", "--save_dir", folder, "--from_resume", 1)
    return Running(*arguments, **options)


def logged(folder: Path) -> int:
    """The number of logged steps; a save has a line of its own when it writes weights."""
    path = folder / "metrics.jsonl"
    return path.read_text().count('"loss": ') if path.is_file() else 0


def until(run: Running, folder: Path, step: int) -> Running:
    """Wait until a step is logged and all ranks are found."""
    return run.wait_for(lambda: len(run.ranks) == 2 and logged(folder) >= step)


def is_saved(folder: Path) -> bool:
    """Whether the last logged step has a checkpoint."""
    return (folder / "checkpoints/latest").read_text() == f"step{logged(folder):08d}"


def checkpoints(folder: Path) -> set[str]:
    return {path.name for path in (folder / "checkpoints").glob("step*")}


def stopped_with_the_launcher(flags, folder):
    """SIGTERM ends the deepspeed command at once; the ranks notice it, save and exit."""
    with go_on(flags, folder) as run:
        until(run, folder, logged(folder) + 3).process.terminate()
        done = run.ended()
    assert done.status == -signal.SIGTERM
    assert "the launcher has exited: stopped after step" in done.output
    assert is_saved(folder)


def stopped_by_a_signal_to_the_group(flags, folder):
    """The launcher ignores SIGUSR1, so its status is that of the ranks."""
    before = logged(folder)
    with go_on(flags, folder, prefix=("sh", "-c", 'trap "" USR1; exec "$@"', "sh")) as run:
        os.killpg(until(run, folder, before + 3).process.pid, signal.SIGUSR1)
        done = run.ended()
    assert done.status == PREEMPTED
    assert f"resuming after step {before}" in done.output
    assert "SIGUSR1: stopped after step" in done.output
    assert is_saved(folder)


def stopped_by_ctrl_c(flags, folder):
    """SIGINT to the whole process group, the launcher's two processes among it."""
    with go_on(flags, folder) as run:
        os.killpg(until(run, folder, logged(folder) + 3).process.pid, signal.SIGINT)
        done = run.ended()
    assert done.status == -signal.SIGTERM
    assert "Traceback" not in done.output
    assert done.output.count("SIGINT: the run saves after this step") == 1
    assert "SIGINT: stopped after step" in done.output
    assert is_saved(folder)


def a_rank_killed_under_torchrun(flags, folder):
    """Within a step."""
    with go_on(flags, folder, launcher="torchrun") as run:
        until(run, folder, logged(folder) + 3).ranks[1].kill()
        done = run.ended(timeout=60)
    assert done.status == 1
    assert "LaunchError: rank 1 (process" in done.output
    assert "is lost: " in done.output
    assert "--from_resume 1" in done.output


def rank_0_killed_within_a_save(flags, folder):
    """Its process holds the ranks' store."""
    with go_on(flags, folder) as run:
        until(run, folder, logged(folder))
        before = checkpoints(folder)
        run.wait_for(lambda: checkpoints(folder) > before).ranks[0].kill()
        done = run.ended(timeout=60)
    assert done.status not in (0, PREEMPTED)
    assert "LaunchError: rank 0 (process" in done.output


# Each interruption is a launch, of which most of the time is imports.
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "interruptions",
    [
        pytest.param((stopped_by_ctrl_c, rank_0_killed_within_a_save), id="two"),
        pytest.param(
            (
                stopped_with_the_launcher,
                stopped_by_a_signal_to_the_group,
                stopped_by_ctrl_c,
                a_rank_killed_under_torchrun,
                rank_0_killed_within_a_save,
            ),
            id="five",
            marks=pytest.mark.long,
        ),
    ],
)
def test_run_that_is_stopped_and_killed_takes_the_same_steps(interruptions, flags, curve, tmp_path):
    for interrupt in interruptions:
        interrupt(flags, tmp_path)
    train(*flags, "--from_resume", 1, "--save_dir", tmp_path, ranks=2).succeeded()
    assert [[entry[name] for name in EXACT] for entry in metrics(tmp_path)] == curve


@pytest.mark.long
@pytest.mark.parametrize(("number", "to_all"), [(signal.SIGTERM, False), (signal.SIGINT, True)])
def test_signal_before_the_first_step_ends_the_run_with_nothing_saved(number, to_all, flags, tmp_path):
    with go_on(flags, tmp_path) as run:
        run.wait_for(lambda: len(run.ranks) == 2 and "by default:" in run.output)
        if to_all:
            os.killpg(run.process.pid, number)
        else:
            os.kill(run.ranks[0].pid, number)
        done = run.ended()
    # A Ctrl-C reaches the launcher too, which the ranks then end.
    assert done.status == (-signal.SIGTERM if to_all else PREEMPTED)
    assert done.output.count(f"{number.name} in phase ") == 1
    assert done.output.count("exiting; there is nothing to save yet") == 1
    assert "Traceback" not in done.output
    assert not (tmp_path / "checkpoints/latest").exists()


@pytest.mark.long
def test_second_ctrl_c_ends_the_run_at_once():
    with Running("interrupted", script="tests/distributed/workers/hanging.py") as run:
        run.wait_for(lambda: len(run.ranks) == 2 and run.output.count("in a long step") == 2)
        os.killpg(run.process.pid, signal.SIGINT)
        # The launcher ends, the ranks go on.
        assert run.process.wait(60) == -signal.SIGTERM
        time.sleep(1.1)  # sooner, it would count as the same Ctrl-C
        os.killpg(run.process.pid, signal.SIGINT)
        done = run.ended()
    assert done.output.count("SIGINT again: exiting at once; only earlier checkpoints are kept") == 1
    assert "Traceback" not in done.output


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_twenty_kills_at_random_moments_change_no_number():
    with pytest.raises(SystemExit) as ended:
        kill_runs.main(["--runs", "20"])
    assert ended.value.code == 0
