"""Putting a run together: its listeners, their order, and the jobs of training and evaluation."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from minimind.config import parse_settings
from minimind.model.configuration import MiniMindConfig
from minimind.objective.losses import build_objective
from minimind.ranks.watch import Watch
from minimind.ranks.world import World
from minimind.training.console import Console
from minimind.training.setup import assemble as assembling
from minimind.training.setup.assemble import assemble_run

MODEL = MiniMindConfig(generation=3, hidden_size=64, num_hidden_layers=2)


@pytest.fixture
def assemble(tmp_path):
    asked = []

    def run(*flags, rank=0, is_demo=False, eval_table=None, unlogged=None, loss="sigmoid", moving=None, draws=False):
        world = World(rank=rank, local_rank=rank, size=2, device=torch.device("cpu"))
        manifest = SimpleNamespace(unlogged=unlogged or {})
        prepared = SimpleNamespace(
            settings=parse_settings(["--save_dir", str(tmp_path), *flags]),
            is_demo=is_demo,
            objective=build_objective(loss),
            checkpoint=SimpleNamespace(manifest=manifest) if unlogged else None,
            adapters=None,
            source=SimpleNamespace(config=MODEL, shapes=dict, origin="start.pth"),
            policy_config=SimpleNamespace(
                stage=2, values={"gradient_clipping": 0.5, "tensorboard": {"enabled": draws}}
            ),
            tokenizer=None,
        )
        data = SimpleNamespace(
            table=SimpleNamespace(source=None, tables=()),
            rows=None,
            eval_table=eval_table,
            eval_sets={"": range(2)},
            eval_identity="key",
            stream=SimpleNamespace(epoch_of=lambda step: step / 10),
            total_steps=7,
        )
        opened = SimpleNamespace(checkpoints=SimpleNamespace(folder=tmp_path / "checkpoints"))
        references = ["training", "held out"] if eval_table else ["training"]
        engines = SimpleNamespace(
            moving=moving,
            policy=SimpleNamespace(
                monitor=None,
                add_collisions=lambda: asked.append(True),
                has_adapters=False,
                engine=SimpleNamespace(module=SimpleNamespace(model=nn.Linear(1, 1))),
            ),
            layout=None,
            references=references,
        )
        return assemble_run(prepared, data, opened, engines, world, Watch(), Console(enabled=False))

    run.asked = asked
    return run


def names(run):
    return [listener.name for listener in run.events._listeners]


def test_listeners_of_a_plain_run(assemble):
    assert names(assemble()) == ["metrics_file", "saving", "progress", "guard"]


@pytest.mark.parametrize(("rank", "expected"), [(0, ["board", "metrics_file"]), (1, ["metrics_file", "evaluation"])])
def test_rank_0_writes_for_tensorboard_before_anything_else_does(assemble, rank, expected):
    run = assemble("--guard", "off", rank=rank, draws=True, eval_table=[1, 2])
    assert names(run)[:2] == expected
    # Histograms need the single pairs, on every rank.
    assert next(one for one in run.events._listeners if one.name == "evaluation")._keeps_pairs


def test_the_reference_moves_before_an_evaluation_and_the_save_of_its_step(assemble):
    moving = object()
    run = assemble(eval_table=[1, 2], moving=moving)
    assert names(run) == ["reference_updates", "metrics_file", "evaluation", "saving", "progress", "guard"]
    assert run.events._listeners[3]._moving is moving


def test_an_evaluation_comes_before_the_save_of_its_step(assemble):
    run = assemble(eval_table=[1, 2])
    assert names(run) == ["metrics_file", "evaluation", "saving", "progress", "guard"]
    evaluation = run.events._listeners[1]
    assert (run.job.reference, evaluation._job.reference) == ("training", "held out")


def test_the_best_weights_are_kept_after_the_line_about_their_evaluation(assemble, tmp_path):
    flags = ("--save_best", "eval/rewards/accuracies", "--early_stop", "patience:3")
    run = assemble(*flags, eval_table=[1, 2])
    assert names(run)[-3:] == ["progress", "guard", "best_weights"]
    best = run.events._listeners[-1]
    assert (best._best.criterion.larger, best._patience, best._folder) == (True, 3, tmp_path / "best")
    assert best._halt is run.halt
    assert best._prefix == "eval/"


def test_one_of_several_sets_decides_about_the_best_weights(assemble):
    named = ("--eval_data_path", "zh=a.jsonl", "en=b.jsonl")
    run = assemble("--save_best", "eval/zh/loss", *named, eval_table=[1, 2])
    assert run.events._listeners[-1]._prefix == "eval/zh/"


def test_the_guard_gets_what_the_loss_has(assemble):
    def guard(*flags, **options):
        run = assemble(*flags, eval_table=[1, 2], **options)
        one = next((listener for listener in run.events._listeners if listener.name == "guard"), None)
        keeps = next(one for one in run.events._listeners if one.name == "evaluation")._keeps_pairs
        return None if one is None else (one._stops, one._log_ratios, one._logistic), keeps

    assert guard() == ((False, True, True), True)
    assert guard("--guard", "stop", loss="ipo") == ((True, True, False), True)
    assert guard("--guard", "off") == (None, False)
    # Answers with labels are no pairs.
    assert guard(loss="kto") == ((False, False, False), False)


def test_a_ledger_hears_of_an_evaluation_before_the_save_of_its_step(assemble):
    run = assemble("--ledger", "1", eval_table=SimpleNamespace(tables=()))
    assert names(run) == ["metrics_file", "evaluation", "ledger", "saving", "progress", "guard"]
    _, evaluation, ledger, *_ = run.events._listeners
    assert run.met == ledger.met
    assert evaluation._keeps == tuple(ledger.values.values())
    assert "ref_chosen_logps" in ledger.values
    assert assemble().met is None


@pytest.mark.parametrize(("rank", "writes"), [(0, ["sample_files"]), (1, [])])
def test_all_ranks_sample_before_the_save_and_rank_0_writes(assemble, rank, writes, monkeypatch):
    sampling = SimpleNamespace(name="sampling")
    monkeypatch.setattr(assembling, "sampling", lambda *arguments: sampling)
    found = names(assemble("--sample_prompts", "3", rank=rank, eval_table=[1, 2]))
    assert found == ["metrics_file", "evaluation", "sampling", *writes, "saving", "progress", "guard"]
    assert "sampling" not in names(assemble("--sample_prompts", "0", eval_table=[1, 2]))


def test_a_loss_with_running_means_brings_the_listener_that_keeps_them(assemble):
    assert "batch_statistics" not in names(assemble())
    assert names(assemble(loss="sigmoid,bco_pair"))[0] == "batch_statistics"  # before the listener that saves


def test_settings_reach_the_loop(assemble, tmp_path):
    run = assemble("--log_interval", "3", "--seed", "5")
    assert (run.total_steps, run.log_interval, run.seed) == (7, 3, 5)
    assert run.nonfinite.latest == tmp_path / "checkpoints" / "latest"
    assert run.metrics._clip == 0.5
    assert run.metrics._others == (run.speed.reduce,)


def test_unlogged_metrics_of_the_checkpoint_are_taken_over(assemble):
    fresh = assemble().metrics.sums
    names = [*fresh.names, *fresh.token_names]
    sums = [[float(rank)] * len(fresh.sums) for rank in (1, 2)]
    run = assemble(unlogged={"names": names, "sums": sums, "norms": [3.0, 1.0, 1.0], "seconds": 4.0}, rank=1)
    assert run.metrics.sums.sums.tolist() == sums[1]


def test_only_a_loss_that_needs_it_asks_for_whole_distributions(assemble):
    assemble(loss="sigmoid,bco_pair")
    assert assemble.asked == []
    assemble(loss="sigmoid,wpo")
    assert assemble.asked == [True]
