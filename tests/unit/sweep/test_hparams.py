"""TensorBoard reads one experiment of the sweep; the runs themselves write their values."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from minimind.config import parse_settings
from minimind.engine.monitor import RunMonitor
from minimind.engine.summaries import FINAL, session_start
from minimind.sweep.hparams import write_hparams
from minimind.sweep.plan import FAILED, FINISHED
from minimind.sweep.results import METRICS, TOKEN_METRICS, read_result
from minimind.training.events import Evaluated, Log, Save, prefix_of
from minimind.training.listeners.board import Board
from tests.unit.sweep.made import evaluated, plans, trained, write_run


def read(folder) -> list[HParamsPluginData]:
    """What a folder's event files say about hyperparameters."""
    found = []
    for path in sorted(folder.glob("events.out.tfevents.*")):
        for event in EventFileLoader(str(path)).Load():
            for value in event.summary.value:
                data = HParamsPluginData()
                data.ParseFromString(value.metadata.plugin_data.content)
                found.append(data)
    return found


def results(found):
    return [read_result(plan) for plan in found]


def test_an_experiment_and_the_values_of_finished_runs(tmp_path):
    found = plans(tmp_path, "--beta", "0.05,0.1", "--loss", "sigmoid,ipo")
    for plan, status in zip(found, (FINISHED, FINISHED, FAILED), strict=False):
        write_run(plan, status, evaluated(8, 0.7))
    assert write_hparams(tmp_path, results(found)) == []
    (experiment,) = (data.experiment for data in read(tmp_path))
    infos = {info.name: list(info.domain_discrete.values) for info in experiment.hparam_infos}
    assert [value.number_value for value in infos["beta"]] == [0.05, 0.1]
    assert [value.string_value for value in infos["loss"]] == ["sigmoid", "ipo"]
    assert all(info.differs for info in experiment.hparam_infos)
    assert [info.name.tag for info in experiment.metric_infos] == [
        "final/eval/rewards/accuracies",
        "final/eval/rewards/margins",
        "final/eval/loss",
    ]
    # Again: a new experiment in place of the old one.
    write_hparams(tmp_path, results(found))
    assert len(read(tmp_path)) == 1


def written_by_a_run(folder, *, pairs, sets) -> set[str]:
    """Tags of what a run with these sets of held-out data writes to be compared by."""
    names = {*(METRICS if pairs else TOKEN_METRICS), "nll", "entropy"}
    parts = {f"{name}_monitor": None for name in ("wandb", "csv", "comet")}
    writer = SimpleNamespace(log_dir=str(folder), close=lambda: None)
    inner = SimpleNamespace(enabled=True, tb_monitor=SimpleNamespace(summary_writer=writer), **parts)
    facts = {"values": {}, "origins": {}, "facts": {}, "beta": None, "pairs": pairs, "held_out": bool(sets)}
    board = Board(monitor=RunMonitor(inner, lambda: 0), **facts)
    for name in sets:
        metrics = {f"{prefix_of(name)}{metric}": 0.5 for metric in names}
        board.on_evaluated(Evaluated(step=8, metrics=metrics, items=1, name=name))
    board.on_log(Log(step=8, metrics=dict.fromkeys(names, 0.5)))
    board.on_save(Save(step=8))
    events = EventAccumulator(str(folder / FINAL))
    events.Reload()
    return set(events.Tags()["scalars"])


@pytest.mark.parametrize("pairs", [True, False])
@pytest.mark.parametrize("sets", [(), ("",), ("zh", "en"), ("", "zh")])
def test_the_columns_are_what_the_runs_write(tmp_path, pairs, sets):
    found = plans(tmp_path, "--job", "dpo" if pairs else "sft", "--learning_rate", "1e-4,1e-3")
    names = METRICS if pairs else TOKEN_METRICS
    lines = [{"step": 8, **{f"{prefix_of(one)}{name}": 0.5 for name in names}} for one in sets]
    for plan in found:
        write_run(plan, FINISHED, *lines, {"step": 8, **dict.fromkeys(names, 0.5)})
    write_hparams(tmp_path, results(found))
    (experiment,) = (data.experiment for data in read(tmp_path))
    columns = {info.name.tag for info in experiment.metric_infos}
    assert len(columns) == 3 * len([one for one in sets if not one] or sets or [""])
    (tmp_path / "run").mkdir()
    assert columns <= written_by_a_run(tmp_path / "run", pairs=pairs, sets=sets)


def test_the_experiment_and_the_runs_name_values_alike(tmp_path):
    found = plans(tmp_path, "--beta", "0.05,0.1", "--loss", "sigmoid,ipo", "--use_compile", "0,1")
    for plan in found:
        write_run(plan, FINISHED, trained(8, 0.7))
    write_hparams(tmp_path, results(found))
    (experiment,) = (data.experiment for data in read(tmp_path))
    own = session_start(parse_settings(found[-1].argv).values).value[0].metadata.plugin_data.content
    values = HParamsPluginData.FromString(own).session_start_info.hparams
    for info in experiment.hparam_infos:
        assert values[info.name] in list(info.domain_discrete.values)


def test_values_of_mixed_kinds_are_texts(tmp_path):
    found = plans(tmp_path, "--filter_score_gap", "1;0.5", "--from_weight", "3;start.pth")
    for plan in found:
        write_run(plan, FINISHED, evaluated(8, 0.7))
    write_hparams(tmp_path, results(found))
    (experiment,) = (data.experiment for data in read(tmp_path))
    infos = {info.name: list(info.domain_discrete.values) for info in experiment.hparam_infos}
    assert [value.string_value for value in infos["from_weight"]] == ["3", "start.pth"]
    assert [value.number_value for value in infos["filter_score_gap"]] == [1, 0.5]


def test_runs_without_tensorboard_are_named(tmp_path):
    found = plans(tmp_path, "--beta", "0.05,0.1")
    write_run(found[0], FINISHED, evaluated(8, 0.7), tensorboard=False)
    write_run(found[1], FINISHED, evaluated(8, 0.7))
    assert write_hparams(tmp_path, results(found)) == ["beta-0.05"]


def test_without_several_values_or_finished_runs_nothing_is_written(tmp_path):
    (plan,) = plans(tmp_path / "one", "--beta", "0.05")
    write_run(plan, FINISHED, evaluated(8, 0.7))
    write_hparams(tmp_path / "one", results([plan]))
    found = plans(tmp_path / "two", "--beta", "0.05,0.1")
    (tmp_path / "two").mkdir()
    write_hparams(tmp_path / "two", results(found))
    assert not list(tmp_path.glob("*/events.out.tfevents.*"))
