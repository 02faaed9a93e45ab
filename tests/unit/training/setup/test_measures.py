"""What measures a run: the operations that count, by reference and adapters, and what TensorBoard is told."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from minimind.config import parse_settings
from minimind.engine.reference import ModelReference
from minimind.errors import WeightsError
from minimind.model.configuration import MiniMindConfig
from minimind.objective.losses import build_objective
from minimind.objective.token_mean import TokenMean
from minimind.ranks.watch import Watch
from minimind.ranks.world import World
from minimind.training.console import Console
from minimind.training.expert_load import ExpertLayers
from minimind.training.setup import measures
from minimind.training.setup.measures import board, other_measures, shows_on_board, step_speed
from minimind.weights.construction import empty_model, tensor_shapes, uninitialized_model

WORLD = World(rank=0, local_rank=0, size=2, device=torch.device("cpu"))
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 64, "moe_intermediate_size": 16}


class Computed(ModelReference):
    def __init__(self):
        pass

    def log_probs(self, batch):
        raise NotImplementedError


def prepared(*flags, objective=None, tensorboard=None):
    config = MiniMindConfig(generation=3, **SIZES)
    return SimpleNamespace(
        settings=parse_settings(["--save_dir", "out/mine", *flags]),
        objective=objective or build_objective("sigmoid"),
        policy_config=SimpleNamespace(stage=2, values={} if tensorboard is None else {"tensorboard": tensorboard}),
        source=SimpleNamespace(config=config, shapes=lambda: tensor_shapes(empty_model(config)), origin="start.pth"),
    )


def engines(reference=None, has_adapters=False, use_moe=False):
    config = MiniMindConfig(generation=3, use_moe=use_moe, **SIZES)
    module = SimpleNamespace(model=uninitialized_model(config, torch.float32))
    policy = SimpleNamespace(has_adapters=has_adapters, engine=SimpleNamespace(module=module), monitor="monitor")
    return SimpleNamespace(references=[reference], policy=policy)


def speed(of):
    return step_speed(prepared(), of, None, WORLD, Watch(), Console(enabled=False))


@pytest.mark.parametrize(
    ("reference", "has_adapters", "passes"),
    [(Computed(), False, 4), ("cached", False, 3), (None, False, 3), (Computed(), True, 3), (None, True, 2)],
)
def test_forwards_that_a_step_is_worth(reference, has_adapters, passes):
    assert speed(engines(reference, has_adapters))._useful.passes == passes


def test_a_model_that_cannot_be_planned_has_no_work(monkeypatch):
    def fail(*_):
        raise WeightsError("no heads")

    monkeypatch.setattr(measures.ModelWork, "of", fail)
    assert speed(engines())._useful.work is None


def test_a_mixture_s_load_is_measured_or_it_is_said_why_not(capsys, monkeypatch):
    one, console = speed(engines()), Console(enabled=True)
    assert other_measures(prepared(), engines(), one, WORLD, console) == (one.reduce,)
    assert len(other_measures(prepared(), engines(use_moe=True), one, WORLD, console)) == 2
    assert other_measures(prepared("--use_compile", "1"), engines(), one, WORLD, console) == (one.reduce,)
    assert capsys.readouterr().out == ""
    compiled = prepared("--use_compile", "1")
    assert other_measures(compiled, engines(use_moe=True), one, WORLD, console) == (one.reduce,)
    assert "experts: not counted, because compiled blocks (--use_compile 1) call no hooks" in capsys.readouterr().out
    layers = ExpertLayers(counted={}, others=("JetMoeMoA", "JetMoeMoE"))
    monkeypatch.setattr(ExpertLayers, "of", lambda model: layers)
    assert other_measures(prepared(), engines(), one, WORLD, console) == (one.reduce,)
    assert "  experts: not counted in JetMoeMoA, JetMoeMoE, which does not say" in capsys.readouterr().out


def test_tensorboard_is_on_if_the_file_says_so():
    assert not shows_on_board(prepared())
    assert not shows_on_board(prepared(tensorboard={"enabled": False}))
    assert shows_on_board(prepared(tensorboard={"enabled": True}))


def test_the_board_knows_the_run():
    one = board(prepared("--run_name", "first"), engines(), WORLD, held_out=True)
    assert one._facts["run"] == "first"
    assert one._facts["on"] == "2 ranks on cpu, ZeRO-2, bfloat16"
    assert (one._monitor, one._beta, one._pairs, one._held_out) == ("monitor", 0.1, True, True)
    # Rewards of losses without a reference are no log-ratios, and tokens have none.
    assert board(prepared(objective=build_objective("simpo")), engines(), WORLD, held_out=False)._beta is None
    tokens = board(prepared(objective=TokenMean()), engines(), WORLD, held_out=False)
    assert (tokens._beta, tokens._pairs) == (None, False)
