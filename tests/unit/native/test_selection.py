"""The selection: nothing is compiled before `prepare`, and `using` switches and restores."""

from __future__ import annotations

import json

import pytest
import torch

from minimind import native
from minimind.native import library
from minimind.native.selection import gpu_kernels_take, kernels_take
from tests.forked import run_fresh

# Trains one step of a tiny model in bfloat16 in each state, and prints how often the compiler was started so far.
SCRIPT = """
import json, pathlib, sys, warnings
import torch
import minimind
from minimind import native
from minimind.objective.log_probs import target_log_probs

warnings.simplefilter("ignore")  # the compiler that fails
model = minimind.MiniMindForCausalLM(minimind.MiniMindConfig(
    hidden_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1, vocab_size=20, generation=3,
)).bfloat16()

def train():
    hidden = model.model(torch.arange(10)[None])[0][0]
    target_log_probs(hidden, model.lm_head.weight, torch.arange(10)).sum().backward()
    return len(pathlib.Path(sys.argv[1]).read_text().splitlines())

started = {"unprepared": train()}
native.prepare(kernels=False, heap=False)
started["torch"] = train()
native.prepare(kernels=True, heap=False)
started["auto"] = train()
native.keep_memory()
started["heap"] = train()
print(json.dumps(started))
"""


def test_the_compiler_is_started_by_prepare_only(tmp_path):
    """A compiler that writes down each call, then fails: the first operation after `prepare` waits for that."""
    calls, compiler = tmp_path / "calls", tmp_path / "compiler"
    calls.touch()
    compiler.write_text(f'#!/bin/sh\necho "$@" >> {calls}\nsleep 0.2\nexit 1\n', encoding="utf-8")
    compiler.chmod(0o755)
    done = run_fresh(SCRIPT, calls, environment={"CXX": str(compiler)})
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"unprepared": 0, "torch": 0, "auto": 1, "heap": 2}
    kernels, heap = calls.read_text(encoding="utf-8").splitlines()
    assert "kernels.cpp" in kernels
    assert "heap.cpp" in heap


def bf16(*shape: int) -> torch.Tensor:
    return torch.zeros(shape, dtype=torch.bfloat16)


def test_kernels_take_bfloat16_on_a_cpu_only(cpu_kernels):
    assert kernels_take(bf16(2))
    assert not kernels_take(bf16(2), torch.zeros(2))
    assert not kernels_take(bf16(2).to("meta"))


def test_kernels_take_nothing_under_torch_compile(cpu_kernels):
    taken = []

    def noting(x):
        taken.append(kernels_take(x))
        return x + 1

    noting(bf16(2))
    torch.compile(noting, backend="eager")(bf16(2))
    assert taken == [True, False]


def test_using_switches_and_restores(cpu_kernels):
    with native.using(native.TORCH):
        assert not kernels_take(bf16(2))
        with native.using(native.AUTO):
            assert kernels_take(bf16(2))
        assert not kernels_take(bf16(2))
    with pytest.raises(RuntimeError, match="inside"), native.using(native.TORCH):
        raise RuntimeError("inside")
    assert kernels_take(bf16(2))


def test_using_refuses_other_names():
    with pytest.raises(ValueError, match="one of auto, torch, not 'cuda'"), native.using("cuda"):
        pass


def test_prepare_selects_and_compiles_what_it_is_asked_for(monkeypatch):
    asked = []
    monkeypatch.setattr(library, "compile_in_background", lambda **wanted: asked.append(wanted))
    monkeypatch.setattr(library, "compiled_kernels", lambda: object())
    with native.using(native.TORCH):  # restores this process's selection
        native.prepare(kernels=True, heap=False)
        assert kernels_take(bf16(2))
        native.prepare(kernels=False, heap=True)
        assert not kernels_take(bf16(2))
    assert asked == [{"kernels": True, "heap": False}, {"kernels": False, "heap": True}]


def test_no_compiler_means_torch(monkeypatch):
    monkeypatch.setattr(library, "compiled_kernels", lambda: None)
    with native.using(native.AUTO):
        assert not kernels_take(bf16(2))


def test_gpu_kernels_take_no_tensor_on_a_cpu():
    with native.using(native.AUTO):
        assert not gpu_kernels_take(bf16(2))
