"""Muon of DeepSpeed without torch's compiler until it is called; then it is compiled, once."""

from __future__ import annotations

import pytest
from deepspeed.runtime import compiler

from minimind.engine.patches.late_compile import compile_late
from minimind.engine.patches.registry import PatchSelection
from tests.forked import run_fresh

SCRIPT = """
import sys
assert "deepspeed" not in sys.modules
from minimind.engine.patches.late_compile import compile_late
from minimind.engine.patches.registry import PatchSelection

compile_late(PatchSelection())
import deepspeed
from deepspeed.runtime.zero import stage3, stage_1_and_2
from deepspeed.runtime.zero.muon.muon_optimizer import MuonWithAuxAdam
print(MuonWithAuxAdam.__name__, "torch._inductor.compile_fx" in sys.modules)
"""


@pytest.fixture
def compiled(monkeypatch):
    """The functions that DeepSpeed's decorator has compiled; they then return 1 more."""
    functions = []

    def decorate(function):
        functions.append(function)
        return lambda *args, **options: function(*args, **options) + 1

    monkeypatch.setattr(compiler, "compile", lambda: decorate)
    return functions


def test_a_function_is_compiled_at_its_first_call_and_once(compiled):
    compile_late(PatchSelection(report=pytest.fail))

    @compiler.compile()
    def double(x, *, times=2):
        return x * times

    assert compiled == []
    assert (double(3), double(3, times=3)) == (7, 10)
    assert [function.__name__ for function in compiled] == ["double"] == [double.__name__]


def test_switched_off_it_changes_nothing(compiled):
    before, said = compiler.compile, []
    compile_late(PatchSelection(disabled=frozenset({"late_compile"}), report=said.append))
    assert compiler.compile is before
    assert "each rank's start takes seconds longer" in said[0]


def test_torchs_compiler_is_not_imported():
    done = run_fresh(SCRIPT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-2:] == ["MuonWithAuxAdam", "False"]
