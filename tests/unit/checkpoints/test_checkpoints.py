"""Checkpoints come whole or not at all, and what was there stays until the new one is.

DeepSpeed is played by an engine that writes two files; tests/distributed has the real one.
"""

from __future__ import annotations

import contextlib
import errno
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import minimind.checkpoints.checkpoints as module
from minimind.checkpoints.checkpoints import Checkpoints, find
from minimind.errors import CheckpointError
from minimind.ranks.process import World
from minimind.ranks.watch import Watch

pytestmark = pytest.mark.usefixtures("one_rank")

LAYOUT = {"ranks": 1, "zero_optimization": {"stage": 3}}
DESCRIBED = {"identity": {"beta": 0.1}, "batch": {"batch_size": 1}, "layout": LAYOUT}
FILES = ("mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_optim_states.pt")


class Engine:
    """Writes as DeepSpeed does, through its checkpoint engine; `fails` is what the second file meets."""

    def __init__(self, fails: Exception | None = None) -> None:
        self.fails = fails
        self.optimizer = None
        self.checkpoint_engine = SimpleNamespace(save=self.write)
        self.loaded = None

    def write(self, state, path):
        if self.fails is not None and path.endswith(FILES[1]):
            Path(path).write_bytes(b"half")
            raise self.fails
        Path(path).write_bytes(state)

    def _copy_recovery_script(self, folder):
        raise AssertionError("would fail on one rank alone")

    def save_checkpoint(self, folder, tag, client_state, save_latest):
        assert not save_latest
        for name in FILES:
            self.checkpoint_engine.save(f"{name} of {client_state['step']}".encode(), str(Path(folder, tag, name)))
        self._copy_recovery_script(folder)

    def load_checkpoint(self, folder, tag):
        self.loaded = tag
        return folder, {}


@pytest.fixture
def world():
    return World(rank=0, local_rank=0, size=1, device=torch.device("cpu"))


@pytest.fixture
def checkpoints(tmp_path, world):
    return Checkpoints(tmp_path / "checkpoints", world, DESCRIBED, keep=0)


def save(checkpoints, *steps, fails=None):
    for step in steps:
        checkpoints.save(SimpleNamespace(engine=Engine(fails)), step, {"pairs": step}, {"seconds": 2.5})


def present(checkpoints):
    return sorted(path.name for path in checkpoints.folder.iterdir())


def test_what_is_saved_is_found_and_loaded(checkpoints, world):
    assert find(checkpoints.folder, world, "error") is None
    save(checkpoints, 1, 2)
    found = find(checkpoints.folder, world, "error")
    assert found.path.name == "step00000002"
    assert found.manifest.step == 2
    assert found.manifest.stream == {"pairs": 2}
    assert found.manifest.unlogged == {"seconds": 2.5}
    assert set(found.manifest.files) == set(FILES)
    engine = Engine()
    checkpoints.load(SimpleNamespace(engine=engine), found)
    assert engine.loaded == "step00000002"
    # The writer is DeepSpeed's own again.
    assert engine.checkpoint_engine.save == engine.write


def test_saving_and_looking_get_on_file_by_file(tmp_path):
    class Counting(Watch):
        ticks = 0

        def tick(self):
            self.ticks += 1

    watch = Counting()
    world = World(rank=0, local_rank=0, size=1, device=torch.device("cpu"), watch=watch)
    save(Checkpoints(tmp_path, world, DESCRIBED, keep=0), 1)
    assert watch.ticks == 2 * len(FILES)  # written, hashed
    find(tmp_path, world, "error")
    assert watch.ticks == 3 * len(FILES)


@pytest.mark.parametrize(
    "failure",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("[enforce fail at inline_container.cc] PytorchStreamWriter failed writing file data/0"),
    ],
)
def test_a_failed_save_leaves_nothing_and_the_old_one_stays(failure, checkpoints, world):
    save(checkpoints, 1)
    with pytest.raises(CheckpointError, match=f"{FILES[1]}: cannot be written .*MiB are free"):
        save(checkpoints, 2, fails=failure)
    assert present(checkpoints) == ["latest", "step00000001"]
    assert find(checkpoints.folder, world, "error").path.name == "step00000001"
    assert checkpoints.newest() == "step00000001"
    save(checkpoints, 3)
    assert find(checkpoints.folder, world, "error").path.name == "step00000003"


def test_a_save_that_was_killed_disturbs_nothing(checkpoints, world):
    save(checkpoints, 1)
    for name in ("step00000002", "step00000004"):
        (checkpoints.folder / name).mkdir()
        (checkpoints.folder / name / "zero_pp_rank_7_mp_rank_00_optim_states.pt").write_bytes(b"of a rank of then")
    assert find(checkpoints.folder, world, "error").path.name == "step00000001"
    # Its step is saved anew, without what was left; the others go.
    save(checkpoints, 2)
    found = find(checkpoints.folder, world, "error")
    assert set(found.manifest.files) == set(FILES) == {path.name for path in found.path.glob("*.pt")}
    assert present(checkpoints) == ["latest", "step00000001", "step00000002"]


def test_a_kill_between_manifest_and_latest_loses_nothing(checkpoints, world):
    save(checkpoints, 1)
    (checkpoints.folder / "latest").unlink()
    assert find(checkpoints.folder, world, "error").path.name == "step00000001"


def test_the_newest_are_kept(tmp_path, world):
    checkpoints = Checkpoints(tmp_path, world, DESCRIBED, keep=2)
    (tmp_path / "notes").mkdir()
    save(checkpoints, 1, 2, 3, 10)
    assert {"latest", "notes", "step00000003", "step00000010"} <= set(present(checkpoints))
    assert len([name for name in present(checkpoints) if name.startswith("step")]) == 2
    # A failed save deletes nothing.
    with pytest.raises(CheckpointError):
        save(checkpoints, 11, fails=OSError("full"))
    assert find(tmp_path, world, "error").path.name == "step00000010"
    assert (tmp_path / "step00000003/manifest.json").is_file()


def test_latest_rules_and_newer_ones_are_not_deleted_for_it(checkpoints, world):
    save(checkpoints, 1, 2, 3)
    (checkpoints.folder / "latest").write_text("step00000002\n")
    assert find(checkpoints.folder, world, "error").path.name == "step00000002"
    (checkpoints.folder / "latest").write_text("\0garbage")
    assert find(checkpoints.folder, world, "error").path.name == "step00000003"


def test_damage_is_an_error_that_names_the_newest_whole_one(checkpoints, world):
    save(checkpoints, 1, 2, 3)
    (checkpoints.folder / "step00000003" / FILES[1]).write_bytes(b"torn")
    (checkpoints.folder / "step00000002/manifest.json").write_text("{")
    with pytest.raises(CheckpointError) as caught:
        find(checkpoints.folder, world, "error")
    text = str(caught.value)
    assert f"step00000003: {FILES[1]} has 4 of" in text
    assert "step00000002: manifest.json cannot be read" in text
    assert "The newest whole one is step00000001: --on_bad_checkpoint previous goes on from there" in text

    found = find(checkpoints.folder, world, "previous")
    assert found.path.name == "step00000001"
    assert list(found.damaged) == ["step00000003", "step00000002"]
    # Only looked at so far; going on puts them aside, and `latest` names what is whole.
    assert (checkpoints.folder / "latest").read_text() == "step00000003"
    checkpoints.load(SimpleNamespace(engine=Engine()), found)
    assert (checkpoints.folder / "latest").read_text() == "step00000001"
    aside = ["step00000002.damaged", "step00000003.damaged"]
    assert present(checkpoints) == ["latest", "step00000001", *aside]
    save(checkpoints, 2)
    assert present(checkpoints) == ["latest", "step00000001", "step00000002", *aside]


def test_when_none_is_whole_both_ways_stop(checkpoints, world):
    save(checkpoints, 1)
    (checkpoints.folder / "step00000001" / FILES[0]).unlink()
    for on_bad in ("error", "previous"):
        with pytest.raises(CheckpointError, match=r"is missing(.|\n)*No other is whole"):
            find(checkpoints.folder, world, on_bad)


def test_a_folder_that_latest_names_and_is_gone_is_said(checkpoints, world):
    save(checkpoints, 1)
    (checkpoints.folder / "latest").write_text("step00000009")
    with pytest.raises(CheckpointError, match=r"step00000009: manifest\.json is missing"):
        find(checkpoints.folder, world, "error")
    assert find(checkpoints.folder, world, "previous").path.name == "step00000001"


def test_what_deepspeed_cannot_load_is_a_users_error(checkpoints, world):
    save(checkpoints, 1)
    found = find(checkpoints.folder, world, "error")
    engine = Engine()
    engine.load_checkpoint = lambda folder, tag: (None, None)
    with pytest.raises(CheckpointError, match="nothing that DeepSpeed can load") as caught:
        checkpoints.load(SimpleNamespace(engine=engine), found)
    assert caught.value.agreed
    engine.load_checkpoint = None
    with pytest.raises(CheckpointError, match=r"cannot be loaded .TypeError"):
        checkpoints.load(SimpleNamespace(engine=engine), found)


@pytest.mark.parametrize("damaged", [False, True])
def test_ranks_agree_that_all_have_read_before_they_meet_in_deepspeed(damaged, checkpoints, world, monkeypatch):
    save(checkpoints, 1)
    found = find(checkpoints.folder, world, "error")
    engine, events = Engine(), []
    engine.optimizer = SimpleNamespace(checkpoint_event_epilogue=lambda: events.append("met"))

    def load_checkpoint(folder, tag):
        engine.optimizer.checkpoint_event_epilogue()
        events.append("read")
        return None if damaged else (folder, {})

    def agreed(world, action):
        agree(world, action)
        events.append("agreed")

    engine.load_checkpoint = load_checkpoint
    agree = module.agree
    monkeypatch.setattr(module, "agree", agreed)
    with pytest.raises(CheckpointError) if damaged else contextlib.nullcontext():
        checkpoints.load(SimpleNamespace(engine=engine), found)
    assert events == (["read"] if damaged else ["read", "agreed", "met"])
    engine.optimizer.checkpoint_event_epilogue()
    assert events[-1] == "met"
