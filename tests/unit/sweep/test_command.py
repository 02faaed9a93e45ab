"""A sweep from its flags to its table, with a function in place of the launcher."""

from __future__ import annotations

import json
import signal

import pytest

from minimind.errors import ConfigError
from minimind.ranks.exits import PREEMPTED
from minimind.sweep import command
from minimind.sweep.command import main, sweep
from tests.unit.sweep.made import FLAGS, evaluated, plans, write_run

VALUES = ("--beta", "0.05,0.1", "--loss", "sigmoid,ipo")


@pytest.fixture
def launched(monkeypatch):
    """Names of the runs that were launched; `outcomes` has the exit status of each, or a signal for the sweep."""

    def use(**outcomes):
        names = []

        def launch(plan, launcher, stop):
            names.append(plan.name)
            status = outcomes.get(plan.name.replace("-", "_").replace(".", "_"), 0)
            write_run(plan, "started", evaluated(0, 0.5), evaluated(8, 0.9 if "ipo" in plan.name else 0.8))
            if isinstance(status, signal.Signals):
                stop(status, None)
                return PREEMPTED
            return status

        monkeypatch.setattr(command, "launch", launch)
        return names

    return use


def arguments(folder, *more):
    return [*FLAGS, "--save_dir", str(folder), *VALUES, *more]


def test_all_combinations_are_trained_and_a_second_call_trains_none(tmp_path, launched, capsys):
    names = launched()
    assert sweep(arguments(tmp_path)) == 0
    assert names == [plan.name for plan in plans(tmp_path, *VALUES)]
    printed = capsys.readouterr().out
    assert "=== run 4 of 4: beta-0.1_loss-ipo" in printed
    assert printed.index("0.05  ipo") < printed.index("0.05  sigmoid   ")
    assert {path.name for path in tmp_path.glob("sweep.*")} == {"sweep.json", "sweep.csv", "sweep.svg"}
    assert sweep(arguments(tmp_path)) == 0
    assert len(names) == 4
    assert "4 runs in" in (printed := capsys.readouterr().out)
    assert "4 of them finished before" in printed


def test_a_failed_run_does_not_lose_the_others_and_is_tried_again(tmp_path, launched, capsys):
    names = launched(beta_0_05_loss_ipo=70)
    assert sweep(arguments(tmp_path)) == 1
    assert len(names) == 4
    printed = capsys.readouterr().out
    assert f"FAILED: beta-0.05_loss-ipo: exit status 70; see {tmp_path / 'beta-0.05_loss-ipo/console.log'}" in printed
    names = launched()
    assert sweep(arguments(tmp_path)) == 0
    assert names == ["beta-0.05_loss-ipo"]
    assert "=== run 2 of 4: beta-0.05_loss-ipo (goes on)" in capsys.readouterr().out


def test_metrics_that_cannot_be_read_cost_one_run_of_the_table(tmp_path, launched, capsys):
    launched()
    assert sweep(arguments(tmp_path)) == 0
    path = tmp_path / "beta-0.05_loss-ipo/metrics.jsonl"
    path.unlink()
    path.mkdir()
    capsys.readouterr()
    assert sweep(arguments(tmp_path)) == 0
    assert f"without metrics: beta-0.05_loss-ipo: {path}: cannot be read" in capsys.readouterr().out
    runs = json.loads((tmp_path / "sweep.json").read_text())["runs"]
    assert sum(bool(run["metrics"]) for run in runs) == 3


def test_a_stopped_sweep_goes_on_where_it_was(tmp_path, launched, capsys):
    names = launched(beta_0_05_loss_ipo=signal.SIGINT)
    assert sweep(arguments(tmp_path)) == PREEMPTED
    assert names == ["beta-0.05_loss-sigmoid", "beta-0.05_loss-ipo"]
    assert "Stopped with 1 of 4 runs finished. The same command goes on." in capsys.readouterr().out
    statuses = [run["status"] for run in json.loads((tmp_path / "sweep.json").read_text())["runs"]]
    assert statuses == ["finished", "stopped", "not started", "not started"]
    names = launched()
    assert sweep(arguments(tmp_path)) == 0
    assert names == ["beta-0.05_loss-ipo", "beta-0.1_loss-sigmoid", "beta-0.1_loss-ipo"]


def test_a_run_that_something_else_stops_stops_the_sweep(tmp_path, launched):
    """Slurm signals all processes of a job."""
    names = launched(beta_0_05_loss_sigmoid=PREEMPTED)
    assert sweep(arguments(tmp_path)) == PREEMPTED
    assert len(names) == 1


def test_more_values_train_only_what_is_new(tmp_path, launched):
    launched()
    assert sweep(arguments(tmp_path)) == 0
    names = launched()
    assert sweep([*FLAGS, "--save_dir", str(tmp_path), "--beta", "0.05,0.1,0.3", "--loss", "sigmoid,ipo"]) == 0
    assert names == ["beta-0.3_loss-sigmoid", "beta-0.3_loss-ipo"]


def test_other_flags_are_refused_before_anything_is_trained(tmp_path, launched):
    names = launched()
    assert sweep(arguments(tmp_path)) == 0
    names.clear()
    with pytest.raises(ConfigError, match="belongs to a sweep with other flags: --seed was not given, is 7"):
        sweep(arguments(tmp_path, "--seed", "7"))
    assert names == []


def test_an_error_is_one_line_and_status_1(tmp_path):
    with pytest.raises(SystemExit) as caught:
        main(["--beta", "0.1"])
    assert caught.value.code == "ConfigError: --deepspeed FILE is missing, e.g. --deepspeed ds_configs/zero2.json"
