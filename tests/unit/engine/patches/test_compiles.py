"""Compiles of DeepSpeed's ops: real processes that are killed or at work, torch's real lock, and nothing to compile."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import time

import pytest
from deepspeed.ops.op_builder.builder import OpBuilder
from torch.utils.file_baton import FileBaton

from minimind.engine.patches import compiles
from minimind.engine.patches.compiles import compiled, guard_compiles
from minimind.engine.patches.registry import PatchSelection
from minimind.errors import ConfigError
from tests.forked import forked


def at_work(whose, folder, goes_on, begun):
    """Hold torch's lock until it may go on: as a process of this project ("ours"), or as any other that uses torch."""

    def load():
        baton = FileBaton(f"{folder}/lock")
        assert baton.try_acquire()
        begun.set()
        goes_on.wait(120)
        baton.release()

    compiled("an_op", load) if whose == "ours" else load()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Torch's folder of the op `an_op`."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setattr(compiles, "_POLL_SECONDS", 0.05)
    path = tmp_path / "an_op"
    path.mkdir()
    return path


@contextlib.contextmanager
def compiling(whose, folder):
    """A process that compiles, and the event for which it waits."""
    goes_on, begun = multiprocessing.Event(), multiprocessing.Event()
    with forked(at_work, whose, folder, goes_on, begun) as process:
        assert begun.wait(120)
        yield process, goes_on


def test_lock_of_a_killed_run_is_removed_at_once(folder, capsys):
    with compiling("ours", folder):
        pass  # it is killed
    assert (folder / "lock").exists()
    assert compiled("an_op", lambda: "loaded") == "loaded"
    assert not (folder / "lock").exists()
    assert f"removed {folder}/lock, the lock of a compile that was killed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("whose", "said"),
    [("ours", "waiting for process {pid} on "), ("another's", "waiting for process {pid} (py")],
)
def test_compile_of_a_living_process_is_waited_for(whose, said, folder, monkeypatch):
    """However old its lock is."""
    printed = []
    with compiling(whose, folder) as (process, goes_on):
        os.utime(folder / "lock", (time.time() - 1e6,) * 2)

        def ends(*values, **options):
            printed.append(" ".join(map(str, values)))
            if "waiting" in printed[-1]:
                goes_on.set()

        monkeypatch.setattr("builtins.print", ends)
        assert compiled("an_op", lambda: (folder / "lock").exists()) is False
    assert said.format(pid=process.pid) in printed[0]
    assert sum("waiting" in line for line in printed) == 1


@pytest.mark.parametrize(
    ("age", "local", "outcome"),
    [(130, True, "removed"), (400, False, "refused"), (130, False, "waits"), (60, True, "waits")],
)
def test_lock_that_nobody_has_open(age, local, outcome, folder, monkeypatch, capsys):
    """Of a run of another program, or on another machine of a shared file system."""
    (folder / "lock").touch()
    os.utime(folder / "lock", (time.time() - age,) * 2)
    monkeypatch.setattr(compiles, "_is_local", lambda path: local)
    if outcome == "refused":
        with pytest.raises(
            ConfigError, match=rf"{folder}/lock: lock of a compile .* \(7 minutes old\).*Delete the file"
        ):
            compiled("an_op", pytest.fail)
        # The refusal is no death: the next start refuses it again.
        with pytest.raises(ConfigError):
            compiled("an_op", pytest.fail)
        return
    if outcome == "waits":
        monkeypatch.setattr(compiles, "_say", lambda message: (print(message), (folder / "lock").unlink()))
    assert compiled("an_op", lambda: "loaded") == "loaded"
    out = capsys.readouterr().out
    assert ("removed" in out) == (outcome == "removed")
    assert (f"waiting for a process that cannot be seen from here, which compiles: {folder}/lock" in out) == (
        outcome == "waits"
    )


def test_compiled_op_is_loaded_without_a_turn(folder, capsys):
    (folder / "an_op.so").touch()
    assert compiled("an_op", lambda: "loaded") == "loaded"
    assert [path.name for path in folder.iterdir()] == ["an_op.so"]
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("local_rank", ["0", "1"])
def test_folder_that_cannot_be_written_is_named_with_the_variable(local_rank, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "file"))
    monkeypatch.setenv("LOCAL_RANK", local_rank)
    with pytest.raises(ConfigError, match=f"{tmp_path}/file.*set TORCH_EXTENSIONS_DIR to a folder") as caught:
        compiled("an_op", pytest.fail)
    # One rank of a machine prints it.
    assert caught.value.agreed == (local_rank == "1")


def test_missing_home_is_named_instead_of_a_folder_called_tilde(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name in ("TORCH_EXTENSIONS_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as without HOME and without an entry of the user
    with pytest.raises(ConfigError, match="no home directory for the result; set TORCH_EXTENSIONS_DIR"):
        compiled("an_op", pytest.fail)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RuntimeError("Error building 'an_op': [1/3] c++\na.cpp:1: fatal error: no b.h\nninja: stopped"), "no b.h"),
        (RuntimeError("Unable to JIT load the an_op op due to ninja not being installed."), "are ninja and a C\\+\\+"),
        (ImportError("undefined symbol: _ZN3c10"), "an_op: DeepSpeed's an_op was compiled for other .*delete it"),
    ],
)
@pytest.mark.parametrize("built", [False, True])
def test_failed_compile_is_a_user_error(built, error, said, folder):
    if built:
        (folder / "an_op.so").touch()

    def fails():
        raise error

    with pytest.raises(ConfigError, match=said):
        compiled("an_op", fails)


def test_every_op_of_deepspeed_is_guarded(folder, monkeypatch):
    class Op(OpBuilder):
        name = "an_op"

        def __init__(self) -> None:
            pass

        absolute_name = sources = lambda self: ""

    monkeypatch.setattr(
        OpBuilder, "jit_load", lambda self, verbose=True: (self.name, (folder / ".minimind-compiles").exists())
    )
    guard_compiles(PatchSelection(report=pytest.fail))
    assert Op().jit_load(verbose=False) == ("an_op", True)


def test_file_systems_of_one_machine(tmp_path):
    assert compiles._is_local(tmp_path / "lock")
    assert not compiles._is_local(compiles.Path("/proc/self/lock"))
