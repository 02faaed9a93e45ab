"""A monitor that fails costs events, not the run, and is said once; TensorBoard's file holds whole records."""

from __future__ import annotations

import errno
import os
import resource
from types import SimpleNamespace

import pytest
import torch
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator as PluginEventAccumulator
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins.hparams.backend_context import Context
from tensorboard.util.tensor_util import make_ndarray
from torch.utils.tensorboard import SummaryWriter

from minimind.engine import monitor
from minimind.engine.monitor import EventFile, Outage, RunMonitor
from minimind.engine.summaries import FINAL, finals, session_start, text


def fail(error):
    raise error


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.ENOSPC, "; free disk space, and it is written again"),
        (errno.ENOENT, "; put the folder back, and it is written again"),
        (errno.EIO, ""),
    ],
)
def test_an_outage_is_said_at_its_start_and_at_its_end(number, remedy, monkeypatch):
    monkeypatch.setattr(monitor, "_SUCCESSES", 2)
    outage, error = Outage("metrics.jsonl"), OSError(number, "reason")
    # 0: works, 1: fails. One success between failures does not end it: a short record on a full disk.
    said = [outage.attempt(lambda fails=fails: fails and fail(error)) for fails in (0, 1, 1, 0, 1, 0, 0, 0, 1)]
    begins = [f"NOT LOGGED: metrics.jsonl: [Errno {number}] reason. Training continues{remedy}"]
    assert said == [[], begins, [], [], [], [], ["metrics.jsonl is written again"], [], begins]


def test_an_error_of_another_class_is_raised():
    with pytest.raises(KeyError):
        Outage("metrics.jsonl").attempt(lambda: fail(KeyError("bug")))


def monitor_of(step=7, **parts):
    """In place of DeepSpeed's monitor with some parts, after a global step."""
    names = ("tb_monitor", "wandb_monitor", "csv_monitor", "comet_monitor")
    inner = SimpleNamespace(enabled=True, **{**dict.fromkeys(names), **parts})
    return RunMonitor(inner, lambda: step)


def test_a_part_that_fails_does_not_stop_the_others():
    written = []
    wandb = SimpleNamespace(write_events=lambda events: fail(ConnectionError("no network")))
    csv = SimpleNamespace(write_events=written.append)
    guarded = monitor_of(wandb_monitor=wandb, csv_monitor=csv)
    events = [("loss", 0.5, 1)]
    guarded.write_events(events)
    guarded.write_events(events)
    assert written == [events, events]
    assert guarded.news() == ["NOT LOGGED: wandb: no network. Training continues"]
    assert guarded.news() == []


def test_events_that_a_part_does_not_take_do_not_end_its_outage():
    wandb = SimpleNamespace(write_events=lambda events: fail(ConnectionError("no network")))
    guarded = monitor_of(wandb_monitor=wandb)
    guarded.write_events([("loss", 0.5, 1)])
    for sample in range(50):
        guarded.write_events([("Train/Samples/lr", 0.1, sample)])
    assert guarded.news() == ["NOT LOGGED: wandb: no network. Training continues"]


def scalars(folder):
    events = EventAccumulator(str(folder))
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def board(folder, step=7, writer=None):
    """A monitor with a part for TensorBoard."""
    return monitor_of(step, tb_monitor=SimpleNamespace(summary_writer=writer or SummaryWriter(str(folder))))


def test_tensorboard_s_own_writer_is_replaced_and_its_file_continued(tmp_path):
    guarded = board(tmp_path)
    guarded.write_events([("loss", torch.tensor(0.5), 1), ("eval/loss", 0.25, 8)])
    # DeepSpeed's own: the rate of the next step is of no use, the rest goes to the global step, not to a sample.
    guarded.write_events([("Train/Samples/lr", 0.1, 16), ("Train/Samples/loss_scale", 2.0, 16)])
    expected = {"train/loss": [(1, 0.5)], "eval/loss": [(8, 0.25)], "deepspeed/loss_scale": [(7, 2.0)]}
    assert scalars(tmp_path) == expected
    assert len(list(tmp_path.iterdir())) == 1
    assert guarded.news() == []


def test_summaries_go_to_tensorboard_alone(tmp_path):
    csv = []
    guarded = monitor_of(
        tb_monitor=SimpleNamespace(summary_writer=SummaryWriter(str(tmp_path))),
        csv_monitor=SimpleNamespace(write_events=csv.append),
    )
    guarded.write_summaries([text("settings", "**beta** 0.1")], 3)
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    (event,) = events.Tensors("settings/text_summary")
    assert (event.step, event.tensor_proto.string_val[0]) == (3, b"**beta** 0.1")
    assert csv == []


def test_summaries_without_tensorboard_go_nowhere():
    guarded = monitor_of()
    guarded.write_summaries([text("settings", "a")], 0)
    guarded.write_summaries(finals({"loss": 0.5}), 0, folder=FINAL)
    guarded.restart(4)
    assert guarded.news() == []


def test_a_full_disk_costs_summaries_and_is_said_once(tmp_path, monkeypatch):
    guarded = board(tmp_path)
    monkeypatch.setattr(monitor, "append_whole", lambda path, data: fail(OSError(errno.ENOSPC, "No space")))
    guarded.write_summaries([text("settings", "a")], 0)
    guarded.write_events([("loss", 0.5, 1)])
    (line,) = guarded.news()
    assert line.startswith("NOT LOGGED: TensorBoard: [Errno 28] No space. Training continues; free disk space")


def test_steps_that_a_resumed_run_repeats_are_shown_once(tmp_path):
    """By readers of both kinds: the second one, TensorBoard's own, drops nothing at the first restart."""
    first = board(tmp_path)
    first.restart(0)
    for step in (1, 2, 3):
        first.write_events([("loss", float(step), step)])
    second = board(tmp_path, writer=other_file(tmp_path))
    second.restart(3)
    second.write_events([("loss", 30.0, 3), ("loss", 40.0, 4)])
    assert len(list(tmp_path.glob("events*"))) == 2
    shown = [(1, 1.0), (2, 2.0), (3, 30.0), (4, 40.0)]
    assert scalars(tmp_path) == {"train/loss": shown}
    events = PluginEventAccumulator(str(tmp_path))
    events.Reload()
    tensors = events.Tensors("train/loss")
    assert [(one.step, float(make_ndarray(one.tensor_proto))) for one in tensors] == shown


def test_the_engine_s_curve_before_the_resumed_step_stays(tmp_path):
    """It counts samples, of which there are more than steps."""
    for step in (1, 2, 3):
        board(tmp_path, step).write_events([("Train/Samples/loss_scale", 2.0**step, 64 * step)])
    second = board(tmp_path, 3, other_file(tmp_path))
    second.restart(3)
    second.write_events([("Train/Samples/loss_scale", 1.0, 192)])
    assert scalars(tmp_path) == {"deepspeed/loss_scale": [(1, 2.0), (2, 4.0), (3, 1.0)]}


def test_what_compares_runs_is_a_run_of_its_own(tmp_path):
    """TensorBoard lists every scalar of a run with settings, and of the runs below it."""
    guarded = board(tmp_path)
    guarded.restart(0)
    guarded.write_events([("loss", 0.5, 1), ("grad_norm", 2.0, 1)])
    guarded.write_summaries([session_start({"beta": 0.1})], 0, folder=FINAL)
    guarded.write_summaries(finals({"eval/loss": 0.25}), 1, folder=FINAL)
    assert scalars(tmp_path / "final") == {"final/eval/loss": [(1, 0.25)]}
    multiplexer = EventMultiplexer().AddRunsFromDirectory(str(tmp_path), "first").Reload()
    context = Context(SimpleNamespace(data_provider=MultiplexerDataProvider(multiplexer, str(tmp_path))))
    found = context.hparams_metadata(RequestContext(), "")
    listed = context._compute_experiment_from_runs(RequestContext(), "", True, found)
    assert [info.name for info in listed.hparam_infos] == ["beta"]
    assert [info.name.tag for info in listed.metric_infos] == ["final/eval/loss"]


def other_file(folder):
    """The writer of another process, whose file comes later by name."""
    for path in folder.glob("events*"):
        path.rename(path.with_name(path.name.replace(f".{os.getpid()}.", ".1.")))
    writer = SummaryWriter(str(folder))
    ours = next(path for path in folder.glob("events*") if f".{os.getpid()}." in path.name)
    ours.rename(ours.with_name(f"events.out.tfevents.9999999999.host.{os.getpid()}.0"))
    return writer


@pytest.mark.parametrize("removed", ["nothing", "the file's folder", "the run's folder"])
def test_events_that_cannot_be_written_leave_a_file_of_whole_records(removed, tmp_path):
    folder = tmp_path / "run" / "tensorboard"
    folder.mkdir(parents=True)
    file = EventFile(folder)
    file.add_scalar("loss", 1.0, 1)
    file.flush()
    (path,) = folder.iterdir()
    file.add_scalar("loss", 2.0, 2)
    if removed == "nothing":
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        # A disk that is full after a part of the record.
        resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 5, hard))
        try:
            with pytest.raises(OSError, match="too large"):
                file.flush()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    elif removed == "the file's folder":
        os.rename(folder, tmp_path / "away")
    else:
        os.rename(folder.parent, tmp_path / "away")
        with pytest.raises(FileNotFoundError):
            file.flush()
        assert not folder.parent.exists()
        folder.parent.mkdir()
    file.add_scalar("loss", 3.0, 3)
    file.flush()
    expected = {
        "nothing": [(1, 1.0), (3, 3.0)],
        "the file's folder": [(2, 2.0), (3, 3.0)],
        "the run's folder": [(3, 3.0)],
    }
    assert scalars(folder) == {"loss": expected[removed]}


def test_a_process_with_the_number_of_a_dead_one_begins_a_file(tmp_path):
    """A power cut may have damaged the end of the old file, behind which readers see nothing."""
    first = board(tmp_path)
    first.restart(0)
    first.write_summaries(finals({"loss": 0.5}), 100, folder=FINAL)
    (old,) = (tmp_path / FINAL).iterdir()
    old.write_bytes(old.read_bytes() + bytes(40))
    second = board(tmp_path)
    second.restart(101)
    second.write_summaries(finals({"loss": 0.25}), 200, folder=FINAL)
    assert scalars(tmp_path / FINAL) == {"final/loss": [(100, 0.5), (200, 0.25)]}


def test_services_get_events_at_global_steps_only():
    """Theirs may not decrease, and the engine counts samples."""
    written, closed = {"wandb": [], "added": []}, []
    guarded = monitor_of(wandb_monitor=SimpleNamespace(write_events=written["wandb"].extend))
    part = SimpleNamespace(write_events=written["added"].extend, close=lambda: closed.append(True))
    guarded.add("swanlab", part)
    guarded.write_events([("Train/Samples/lr", 0.1, 16)])
    guarded.write_events([("loss", 0.5, 1)])
    guarded.close()
    assert written == {"wandb": [("loss", 0.5, 1)], "added": [("loss", 0.5, 1)]}
    assert closed == [True]
