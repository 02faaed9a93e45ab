"""Compiles of DeepSpeed's ops: real processes that are killed or at work, torch's real lock, and nothing to compile."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest
from deepspeed.ops.op_builder.builder import OpBuilder

from minimind.engine.patches import compiles
from minimind.engine.patches.compiles import compiled, guard_compiles
from minimind.engine.patches.registry import PatchSelection
from minimind.errors import ConfigError
from tests.conftest import REPO

# Holds torch's lock, until its input ends: as a process of this project ("ours"), or as any other that uses torch.
AT_WORK = """
import sys
from torch.utils.file_baton import FileBaton
from minimind.engine.patches.compiles import compiled

def load():
    baton = FileBaton(f"{sys.argv[2]}/lock")
    assert baton.try_acquire()
    print("compiles", flush=True)
    sys.stdin.read()
    baton.release()

compiled("an_op", load) if sys.argv[1] == "ours" else load()
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Torch's folder of the op `an_op`."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setattr(compiles, "_POLL_SECONDS", 0.05)
    path = tmp_path / "an_op"
    path.mkdir()
    return path


@pytest.fixture
def at_work(folder):
    """Starts a process that compiles."""
    started = []

    def start(whose):
        command = [sys.executable, "-c", AT_WORK, whose, str(folder)]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=REPO)
        started.append(process)
        while process.stdout.readline() != b"compiles\n":
            assert process.poll() is None
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


def test_lock_of_a_killed_run_is_removed_at_once(at_work, folder, capsys):
    process = at_work("ours")
    process.kill()
    process.wait()
    assert (folder / "lock").exists()
    assert compiled("an_op", lambda: "loaded") == "loaded"
    assert not (folder / "lock").exists()
    assert f"removed {folder}/lock, the lock of a compile that was killed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("whose", "said"),
    [("ours", "waiting for process {pid} on "), ("another's", "waiting for process {pid} (python")],
)
def test_compile_of_a_living_process_is_waited_for(whose, said, at_work, folder, monkeypatch):
    """However old its lock is."""
    process, printed = at_work(whose), []
    os.utime(folder / "lock", (time.time() - 1e6,) * 2)

    def ends(*values, **options):
        printed.append(" ".join(map(str, values)))
        if "waiting" in printed[-1]:
            process.stdin.close()

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
