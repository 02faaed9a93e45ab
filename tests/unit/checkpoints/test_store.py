"""A checkpoint is complete or absent, and older ones stay until a new one is complete."""

from __future__ import annotations

import contextlib
import errno
from types import SimpleNamespace

import pytest

import minimind.checkpoints.store as module
from minimind.checkpoints.find import find_checkpoint
from minimind.checkpoints.store import Checkpoints
from minimind.engine.patches.registry import PatchSelection
from minimind.errors import CheckpointError
from tests.unit.checkpoints.fake_engine import DESCRIBED, FILES, FakeEngine, policy_of, save

pytestmark = pytest.mark.usefixtures("one_rank")


def present(checkpoints):
    return sorted(path.name for path in checkpoints.folder.iterdir())


def test_saved_checkpoint_is_found_and_loaded(checkpoints, world):
    save(checkpoints, 1, 2)
    found = find_checkpoint(checkpoints.folder, world, "error")
    engine = FakeEngine()
    checkpoints.load(policy_of(engine), found)
    assert engine.loaded == "step00000002"


def test_state_of_listeners_is_empty_unless_given_and_read_back(checkpoints, world):
    save(checkpoints, 1)
    assert find_checkpoint(checkpoints.folder, world, "error").manifest.listeners == {}
    state = {"evaluation": {"best": 0.125, "step": 2}, "saving": {"failed": []}}
    save(checkpoints, 2, listeners=state)
    assert find_checkpoint(checkpoints.folder, world, "error").manifest.listeners == state


def test_progress_is_reported_for_each_file(tmp_path, world):
    calls = []
    save(Checkpoints(tmp_path, world, DESCRIBED, keep=None, on_progress=lambda: calls.append(1)), 1)
    assert len(calls) == 2 * len(FILES)  # written, hashed
    find_checkpoint(tmp_path, world, "error", lambda: calls.append(1))
    assert len(calls) == 3 * len(FILES)


@pytest.mark.parametrize(
    "failure",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("[enforce fail at inline_container.cc] PytorchStreamWriter failed writing file data/0"),
    ],
)
def test_failed_save_leaves_no_files_and_keeps_the_old_checkpoint(failure, checkpoints, world):
    save(checkpoints, 1)
    with pytest.raises(CheckpointError, match=f"{FILES[1]}: cannot be written .*MiB are free"):
        save(checkpoints, 2, fails=failure)
    assert present(checkpoints) == ["latest", "step00000001"]
    assert find_checkpoint(checkpoints.folder, world, "error").path.name == "step00000001"
    assert checkpoints.newest() == "step00000001"
    save(checkpoints, 3)
    assert find_checkpoint(checkpoints.folder, world, "error").path.name == "step00000003"


def test_failed_write_is_reported_by_its_first_error(checkpoints):
    # torch's writer fails twice: on the write, then on closing the file.
    second = RuntimeError("unexpected pos 64 vs 0")
    second.__context__ = OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(CheckpointError, match=r"cannot be written .*No space left on device; .* MiB are free there\)"):
        save(checkpoints, 1, fails=second)


def test_unfinished_checkpoints_of_killed_runs_are_ignored_then_deleted(checkpoints, world):
    save(checkpoints, 1)
    for name in ("step00000002", "step00000004"):
        (checkpoints.folder / name).mkdir()
        (checkpoints.folder / name / "zero_pp_rank_7_mp_rank_00_optim_states.pt").write_bytes(b"of a killed run")
    assert find_checkpoint(checkpoints.folder, world, "error").path.name == "step00000001"
    # Saving step 2 again first empties its folder; the other unfinished one is deleted.
    save(checkpoints, 2)
    found = find_checkpoint(checkpoints.folder, world, "error")
    assert set(found.manifest.files) == set(FILES) == {path.name for path in found.path.glob("*.pt")}
    assert present(checkpoints) == ["latest", "step00000001", "step00000002"]


def test_the_newest_checkpoints_are_kept(tmp_path, world):
    checkpoints = Checkpoints(tmp_path, world, DESCRIBED, keep=2)
    (tmp_path / "notes").mkdir()
    save(checkpoints, 1, 2, 3, 10)
    assert {"latest", "notes", "step00000003", "step00000010"} <= set(present(checkpoints))
    assert len([name for name in present(checkpoints) if name.startswith("step")]) == 2
    # A failed save deletes no other checkpoint.
    with pytest.raises(CheckpointError):
        save(checkpoints, 11, fails=OSError("full"))
    assert find_checkpoint(tmp_path, world, "error").path.name == "step00000010"
    assert (tmp_path / "step00000003/manifest.json").is_file()


@pytest.mark.parametrize("has_adapters", [False, True])
def test_weights_under_adapters_are_not_in_checkpoints(checkpoints, world, has_adapters):
    policy = policy_of(FakeEngine(), has_adapters)
    checkpoints.save(policy, 1, {"pairs": 1}, {})
    assert policy.engine.saved_whole is not has_adapters
    checkpoints.load(policy, find_checkpoint(checkpoints.folder, world, "error"))
    assert policy.engine.strict is not has_adapters


def test_newest_is_none_before_the_first_save(checkpoints):
    assert checkpoints.newest() is None


def test_loading_sets_damaged_checkpoints_aside(checkpoints, world):
    save(checkpoints, 1, 2, 3)
    (checkpoints.folder / "step00000003" / FILES[1]).write_bytes(b"torn")
    (checkpoints.folder / "step00000002/manifest.json").write_text("{")
    found = find_checkpoint(checkpoints.folder, world, "previous")
    checkpoints.load(policy_of(FakeEngine()), found)
    assert (checkpoints.folder / "latest").read_text() == "step00000001"
    aside = ["step00000002.damaged", "step00000003.damaged"]
    assert present(checkpoints) == ["latest", "step00000001", *aside]
    save(checkpoints, 2)
    assert present(checkpoints) == ["latest", "step00000001", "step00000002", *aside]


def test_files_that_deepspeed_cannot_load_are_a_checkpoint_error(checkpoints, world):
    save(checkpoints, 1)
    found = find_checkpoint(checkpoints.folder, world, "error")
    engine = FakeEngine()
    engine.load_checkpoint = lambda folder, tag, load_module_strict: (None, None)
    with pytest.raises(CheckpointError, match="contains nothing that DeepSpeed can load") as caught:
        checkpoints.load(policy_of(engine), found)
    assert caught.value.agreed
    engine.load_checkpoint = None
    with pytest.raises(CheckpointError, match=r"cannot be loaded .TypeError"):
        checkpoints.load(policy_of(engine), found)


@pytest.mark.parametrize("damaged", [False, True])
def test_ranks_agree_that_all_have_loaded_before_deepspeeds_collective(damaged, checkpoints, world, monkeypatch):
    save(checkpoints, 1)
    found = find_checkpoint(checkpoints.folder, world, "error")
    engine, events = FakeEngine(), []
    engine.optimizer = SimpleNamespace(checkpoint_event_epilogue=lambda: events.append("collective"))

    def load_checkpoint(folder, tag, load_module_strict):
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
        checkpoints.load(policy_of(engine), found)
    assert events == (["read"] if damaged else ["read", "agreed", "collective"])
    engine.optimizer.checkpoint_event_epilogue()
    assert events[-1] == "collective"


def test_resharding_is_refused_if_its_patch_is_off(tmp_path, world):
    save(Checkpoints(tmp_path, world, DESCRIBED, keep=None), 1)
    found = find_checkpoint(tmp_path, world, "error")
    patches = PatchSelection(disabled=frozenset({"reshard_checkpoints"}))
    other = {**DESCRIBED, "sharding": {**DESCRIBED["sharding"], "ranks": 2}}
    engine = FakeEngine()
    with pytest.raises(CheckpointError, match=r"'reshard_checkpoints' is off: --disable_patches .*; resume with those"):
        Checkpoints(tmp_path, world, other, keep=None, patches=patches).load(policy_of(engine), found)
    # The sharding of the checkpoint is unchanged.
    Checkpoints(tmp_path, world, DESCRIBED, keep=None, patches=patches).load(policy_of(engine), found)
    assert engine.loaded == "step00000001"
