"""Computations with the whole model: one forward of the engine, which is as it was afterwards."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from minimind.engine import whole_model
from minimind.engine.patches.registry import PatchSelection
from minimind.engine.whole_model import needs_all_ranks, with_model


class Engine:
    """Counts what is called."""

    def __init__(self):
        self.training, self.emptied, self.calls = True, 0, []
        self.parameter = SimpleNamespace(ds_active_sub_modules={4})
        self.module = SimpleNamespace(parameters=lambda: iter([self.parameter]))

    def eval(self):
        self.training = False

    def train(self, mode=True):
        self.training = mode

    def empty_partition_cache(self):
        self.emptied += 1

    def __call__(self, use):
        self.calls.append((self.training, torch.is_grad_enabled(), set(self.parameter.ds_active_sub_modules)))
        use.result = use.compute("model")


def policy(stage=2, size=1, is_compiled=False):
    return SimpleNamespace(
        engine=Engine(), stage=stage, is_compiled=is_compiled, world=SimpleNamespace(size=size, is_main=True)
    )


def test_the_result_comes_back_and_the_engine_trains_on():
    one = policy()
    assert with_model(one, lambda model: f"{model} used") == "model used"
    assert one.engine.calls == [(False, False, {4})]
    assert one.engine.training
    assert one.engine.emptied == 0


def test_weights_are_kept_under_zero_3_where_they_fit():
    one = policy(stage=3)
    with_model(one, str)
    with_model(one, str, keeps_weights=PatchSelection())
    with_model(one, str, keeps_weights=PatchSelection(disabled=frozenset({"keep_gathered"}), report=lambda line: None))
    assert [marked for *_, marked in one.engine.calls] == [{4}, {4, -1}, {4}]
    assert one.engine.parameter.ds_active_sub_modules == {4}
    assert one.engine.emptied == 1


@pytest.mark.parametrize("stage", [2, 3])
def test_an_error_leaves_a_usable_engine(stage):
    one = policy(stage=stage)
    with pytest.raises(ZeroDivisionError):
        with_model(one, lambda model: 1 / 0)
    assert one.engine.training
    assert one.engine.emptied == (stage == 3)


def test_compiled_blocks_are_not_compiled_anew(monkeypatch):
    stances = []
    monkeypatch.setattr(
        whole_model.torch.compiler, "set_stance", lambda stance: stances.append(stance) or torch.no_grad()
    )
    with_model(policy(), str)
    with_model(policy(is_compiled=True), str)
    assert stances == ["force_eager"]


def test_ranks_need_each_other_under_zero_3_alone():
    assert [needs_all_ranks(policy(stage, size)) for stage, size in ((2, 2), (3, 1), (3, 2))] == [False, False, True]
