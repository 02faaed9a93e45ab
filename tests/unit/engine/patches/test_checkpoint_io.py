"""DeepSpeed's engine while it saves and loads: errors and collectives are held back, and its methods are restored."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from minimind.engine.patches.checkpoint_io import FailedWrite, collect_write_failures, defer_load_epilogue
from minimind.engine.patches.registry import PatchSelection


def make_engine(fails=()):
    """An engine whose writer raises the given errors, one a call, and None for a file that it writes."""
    written, errors = [], list(fails)

    def write(state_dict, path):
        error = errors.pop(0) if errors else None
        if error is not None:
            raise error
        written.append(path)

    def copy_scripts(folder):
        raise AssertionError("DeepSpeed's recovery scripts are not copied")

    return SimpleNamespace(
        checkpoint_engine=SimpleNamespace(save=write), _copy_recovery_script=copy_scripts, written=written
    )


def test_write_errors_are_collected_and_the_other_files_are_written():
    errors = [OSError("full"), None, RuntimeError("torch's writer")]
    engine, progress = make_engine(errors), []
    write, copy_scripts = engine.checkpoint_engine.save, engine._copy_recovery_script
    with collect_write_failures(engine, lambda: progress.append(1), PatchSelection()) as failures:
        for path in ("a.pt", "b.pt", "c.pt"):
            engine.checkpoint_engine.save({}, path)
        engine._copy_recovery_script("folder")
    assert failures == [
        FailedWrite(path=Path("a.pt"), error=errors[0]),
        FailedWrite(path=Path("c.pt"), error=errors[2]),
    ]
    assert engine.written == ["b.pt"]
    assert len(progress) == 3
    assert engine.checkpoint_engine.save is write
    assert engine._copy_recovery_script is copy_scripts


def test_other_errors_are_raised_and_methods_are_restored():
    engine = make_engine([KeyError("a defect")])
    write = engine.checkpoint_engine.save
    with pytest.raises(KeyError), collect_write_failures(engine, lambda: None, PatchSelection()):
        engine.checkpoint_engine.save({}, "a.pt")
    assert engine.checkpoint_engine.save is write


def test_load_epilogue_runs_only_when_it_is_called():
    calls = []
    optimizer = SimpleNamespace(checkpoint_event_epilogue=lambda: calls.append("gathered"))
    original = optimizer.checkpoint_event_epilogue
    with defer_load_epilogue(SimpleNamespace(optimizer=optimizer), PatchSelection()) as epilogue:
        optimizer.checkpoint_event_epilogue()
        assert calls == []
    assert optimizer.checkpoint_event_epilogue is original
    epilogue()
    assert calls == ["gathered"]


@pytest.mark.parametrize("optimizer", [None, SimpleNamespace()])
def test_optimizer_without_epilogue_needs_none(optimizer):
    with defer_load_epilogue(SimpleNamespace(optimizer=optimizer), PatchSelection()) as epilogue:
        assert epilogue() is None


def test_without_the_patches_errors_are_raised_and_the_epilogue_runs_in_the_load():
    off, lines = {"collect_write_failures", "defer_load_epilogue"}, []
    patches = PatchSelection(disabled=frozenset(off), report=lines.append)
    engine, calls = make_engine([OSError("full")]), []
    with pytest.raises(OSError, match="full"), collect_write_failures(engine, lambda: None, patches) as failures:
        engine.checkpoint_engine.save({}, "a.pt")
    assert failures == []
    optimizer = SimpleNamespace(checkpoint_event_epilogue=lambda: calls.append("gathered"))
    with defer_load_epilogue(SimpleNamespace(optimizer=optimizer), patches) as epilogue:
        optimizer.checkpoint_event_epilogue()
        assert calls == ["gathered"]
    epilogue()
    assert calls == ["gathered"]
    assert [line.split("'")[1] for line in lines] == ["collect_write_failures", "defer_load_epilogue"]
