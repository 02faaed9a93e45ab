"""What TensorBoard gets besides curves, at which event and step."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from minimind.diagnosis.curves import Finding
from minimind.diagnosis.pair_signals import HeldOut
from minimind.engine.summaries import FINAL, tag_of
from minimind.objective.losses import REWARD_METRICS
from minimind.training.events import End, Evaluated, Found, Log, Save, Start
from minimind.training.jobs.answer_metrics import TOKEN_METRICS
from minimind.training.listeners import board as module
from minimind.training.listeners.board import Board


@pytest.fixture
def made():
    def make(beta=0.5, pairs=True, held_out=True):
        written, final, restarts = [], [], []

        def write(found, step, folder=""):
            {"": written, FINAL: final}[folder].append((step, [one.value[0] for one in found]))

        monitor = SimpleNamespace(write_summaries=write, restart=restarts.append)
        values = {"beta": 0.5, "limit": None, "data_path": ("a.jsonl", "b.jsonl")}
        origins = {"beta": "flag", "limit": "default", "data_path": "flag"}
        facts = {"facts": {"job": "dpo"}, "beta": beta, "pairs": pairs, "held_out": held_out}
        listener = Board(monitor=monitor, values=values, origins=origins, **facts)
        return SimpleNamespace(listener=listener, written=written, final=final, restarts=restarts)

    return make


def test_a_run_begins_with_its_settings_and_the_layout_of_its_charts(made):
    run = made()
    run.listener.on_start(Start(step=0, total_steps=9))
    ((step, values),) = run.written
    assert (step, run.restarts) == (0, [0])
    text = values[0].tensor.string_val[0].decode()
    assert "| job | dpo |" in text
    assert "| beta | 0.5 | flag |" in text
    assert "| limit | - | default |" in text
    assert "| data_path | a.jsonl b.jsonl | flag |" in text
    assert [value.tag for value in values] == ["settings/text_summary", "custom_scalars__config__"]
    ((step, (start,)),) = run.final
    assert (step, start.tag) == (0, "_hparams_/session_start_info")


def test_a_resumed_run_says_only_where_it_goes_on(made):
    run = made()
    run.listener.on_start(Start(step=4, total_steps=9))
    assert (run.written, run.final, run.restarts) == ([], [], [5])


TRAINED = {"loss": 0.5, "rewards/accuracies": 0.75, "tokens_per_second": 10.0, "grad_norm": 1.0}
HELD_OUT = {"eval/loss": 0.625, "eval/rewards/accuracies": 0.5, "eval/rewards/margins": 0.25, "eval/nll": 2.0}


def compared(run):
    """Tag -> (step, last value)."""
    return {value.tag: (step, value.simple_value) for step, values in run.final for value in values}


def test_runs_are_compared_by_the_last_values_of_a_few_metrics(made):
    run = made()
    run.listener.on_log(Log(step=1, metrics={**TRAINED, "loss": 9.0}))
    run.listener.on_log(Log(step=2, metrics=TRAINED))
    run.listener.on_evaluated(evaluated(2, **HELD_OUT))
    run.listener.on_evaluated(evaluated(2, "zh", **{"eval/zh/loss": 0.125}))
    run.listener.on_save(Save(step=3))
    assert compared(run) == {
        "final/eval/loss": (2, 0.625), "final/eval/rewards/accuracies": (2, 0.5),
        "final/eval/rewards/margins": (2, 0.25), "final/eval/zh/loss": (2, 0.125),
        "final/loss": (3, 0.5), "final/tokens_per_second": (3, 10),
    }  # fmt: skip


def test_an_evaluation_after_the_last_save_counts(made):
    """As of a run that a listener has ended (--guard stop, --early_stop) at a step that was saved."""
    run = made()
    run.listener.on_evaluated(evaluated(0, **{"eval/loss": 0.75}))
    run.listener.on_log(Log(step=100, metrics=TRAINED))
    run.listener.on_save(Save(step=100))
    run.listener.on_end(End(step=100, finished=True, reason="--guard stop"))
    run.listener.on_evaluated(evaluated(100, **{"eval/loss": 0.25}))
    found = compared(run)
    assert (found["final/eval/loss"], found["final/loss"]) == ((100, 0.25), (100, 0.5))


def test_without_held_out_data_runs_are_compared_by_training(made):
    run = made(held_out=False)
    run.listener.on_log(Log(step=2, metrics=TRAINED))
    run.listener.on_save(Save(step=2))
    values = {"final/loss": 0.5, "final/rewards/accuracies": 0.75, "final/tokens_per_second": 10}
    assert compared(run) == {tag: (2, value) for tag, value in values.items()}
    tokens = made(held_out=False, pairs=False)
    tokens.listener.on_log(Log(step=2, metrics={"loss": 2.0, "perplexity": 8.0, "entropy": 1.0}))
    tokens.listener.on_save(Save(step=2))
    assert compared(tokens) == {"final/loss": (2, 2), "final/perplexity": (2, 8)}


def evaluated(step, name="", **metrics):
    pairs = HeldOut(
        chosen=np.array([1.0, 2.0]),
        rejected=np.array([0.0, -1.0]),
        chosen_tokens=np.array([10.0, 20.0]),
        rejected_tokens=np.array([5.0, 6.0]),
    )
    return Evaluated(step=step, metrics=metrics, items=2, name=name, pairs=pairs)


def test_histograms_of_the_held_out_pairs(made):
    run = made()
    run.listener.on_evaluated(evaluated(0))
    run.listener.on_evaluated(evaluated(5, "zh"))
    (start, first), (step, second) = run.written
    assert (start, step) == (0, 5)
    ends = {value.tag: (value.histo.min, value.histo.max) for value in first}
    # A reward is beta times the log-ratio.
    assert ends == {
        "eval/pairs/margins": (1, 3),
        "eval/pairs/log_ratios_chosen": (2, 4),
        "eval/pairs/log_ratios_rejected": (-2, 0),
        "eval/pairs/lengths_chosen": (10, 20),
        "eval/pairs/lengths_rejected": (5, 6),
    }
    # Lengths stay the same.
    names = ("margins", "log_ratios_chosen", "log_ratios_rejected")
    assert [value.tag for value in second] == [f"eval/zh/pairs/{name}" for name in names]


def test_rewards_that_are_no_log_ratios_are_called_rewards(made):
    run = made(beta=None)
    run.listener.on_evaluated(evaluated(5))
    ((_, values),) = run.written
    assert [value.tag for value in values][1:] == ["eval/pairs/rewards_chosen", "eval/pairs/rewards_rejected"]
    assert values[1].histo.max == 2


def test_without_single_pairs_there_is_no_histogram(made):
    run = made()
    run.listener.on_evaluated(Evaluated(step=3, metrics={"eval/loss": 0.5}, items=2))
    assert run.written == []


def test_findings_and_the_end(made):
    run = made()
    finding = Finding(rule="length", step=3, text="longer answers win", remedy="try --loss rdpo")
    run.listener.on_found(Found(step=4, finding=finding, name="zh"))
    run.listener.on_end(End(step=6, finished=False, reason="SIGTERM"))
    run.listener.on_end(End(step=9, finished=True))
    ((four, (found,)),), ((nine, (end,)),) = run.written, run.final
    assert (four, nine) == (4, 9)
    assert found.tag == "guard/length/text_summary"
    assert found.tensor.string_val[0] == b"zh: longer answers win (step 3): try --loss rdpo"
    assert end.tag == "_hparams_/session_end_info"


def test_the_charts_are_of_metrics_that_exist():
    answers = ("loss", "grad_norm", *REWARD_METRICS, *TOKEN_METRICS)
    tokens = ("loss", "grad_norm", "time/step", "perplexity", "entropy", "token_accuracy")
    for charts, names in ((module._LEARNING, answers), (module._TOKENS, tokens)):
        known = {tag_of(name) for name in names} | {tag_of(f"eval/{name}") for name in names}
        assert {tag for tags in charts.values() for tag in tags} <= known
        assert len(charts) == 6
