"""Putting sampling together: its prompts, its settings, and when ZeRO-3 gathers the whole model."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch

from minimind.config import parse_settings
from minimind.errors import ConfigError, WeightsError
from minimind.model.configuration import MiniMindConfig
from minimind.objective.losses import build_objective
from minimind.plan.choice import Machine
from minimind.ranks.watch import Watch
from minimind.ranks.world import World
from minimind.training.console import Console
from minimind.training.setup import sampling as setup
from minimind.training.setup.sampling import sampling
from tests.unit.plan.test_memory import ROUND

pytestmark = pytest.mark.usefixtures("one_rank")


@pytest.fixture
def made(tmp_path, tokenizer):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(json.dumps({"prompt": "Hi"}) + "\n", encoding="utf-8")

    def make(*flags, stage=2, eval_table=None, given=prompts, **zero):
        values = {"zero_optimization": {"stage": stage, **zero}}
        prepared = SimpleNamespace(
            settings=parse_settings(["--save_dir", str(tmp_path), "--sample_prompts", str(given), *flags]),
            objective=build_objective("sigmoid"),
            tokenizer=tokenizer,
            source=SimpleNamespace(config=MiniMindConfig()),
            policy_config=SimpleNamespace(values=values),
            reference_config=SimpleNamespace(values={"zero_optimization": {"stage": 3}}),
        )
        world = World(rank=0, local_rank=0, size=1, device=torch.device("cpu"))
        run = SimpleNamespace(world=world, watch=Watch(), metrics=None, events=SimpleNamespace(emit=None))
        data = SimpleNamespace(eval_table=eval_table)
        return sampling(prepared, data, SimpleNamespace(stage=stage), run, Console(enabled=False))

    return make


def test_settings_reach_the_listener(made):
    flags = ("--sample_tokens", "9", "--sample_temperature", "0.7", "--sample_top_p", "0.9", "--sample_seed", "3")
    one = made(*flags, "--sample_interval", "5", "--eval_interval", "7", "--batch_size", "4")
    assert [prompt.text for prompt in one._prompts] == ["Hi"]
    assert (one._decoding.max_new_tokens, one._decoding.temperature, one._decoding.top_p) == (9, 0.7, 0.9)
    assert (one._seed, one._batch_size, one._keeps_weights) == (3, 8, None)
    # Without held-out data there are no evaluations.
    assert (one._schedule.interval, one._schedule.eval_interval) == (5, 0)
    assert list(one._read_start()) == [None]


def test_no_prompt_that_can_be_answered_is_an_error(made, monkeypatch):
    monkeypatch.setattr(setup, "held_out_prompts", lambda *arguments: [])
    with pytest.raises(ConfigError, match="--sample_prompts 3: no held-out prompt has an answer and leaves room"):
        made(given=3, eval_table=[1])


@pytest.mark.parametrize(("memory", "keeps"), [(2**40, True), (2**20, False)])
def test_the_whole_model_is_gathered_where_the_plan_has_room(made, monkeypatch, memory, keeps):
    monkeypatch.setattr(setup, "policy_sizes", lambda prepared: ROUND)
    monkeypatch.setattr(setup, "this_machine", lambda *arguments: Machine(device_memory=memory))
    assert (made(stage=3)._keeps_weights is not None) == keeps
    assert made(stage=3, stage3_module_granularity_threshold=10)._keeps_weights is None
    assert made(stage=2)._keeps_weights is None


def test_the_room_is_that_of_the_longest_prompt(made, monkeypatch):
    loads = []
    monkeypatch.setattr(setup, "policy_sizes", lambda prepared: ROUND)
    memory = setup.rank_memory
    monkeypatch.setattr(setup, "rank_memory", lambda *given: (loads.append(given[3]), memory(*given))[1])
    one = made("--sample_tokens", "9", stage=3)
    assert [load.sample_length for load in loads] == [len(one._prompts[0].ids) + 9]


def test_a_model_that_cannot_be_planned_is_gathered_piece_by_piece(made, monkeypatch):
    def refuse(prepared):
        raise WeightsError("no number of heads")

    monkeypatch.setattr(setup, "policy_sizes", refuse)
    assert made(stage=3)._keeps_weights is None
