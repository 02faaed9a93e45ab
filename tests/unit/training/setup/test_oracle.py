"""The verdict of the oracle: packed, padded or refused, on real tiny models of each kind."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from minimind.data.packs import PackedPairs, PaddedPairs
from minimind.engine.scorer import PairScorer
from minimind.errors import LaunchError
from minimind.model.dropout import turn_off_dropout
from minimind.model.own_attention import AttentionSwitch
from minimind.ranks.world import World
from minimind.training.setup.oracle import PACKED, PADDED, REFUSED, judge, probe_pairs
from tests.parity.families import tiny_config, tiny_model
from tests.parity.steps import preference_pair

pytestmark = pytest.mark.usefixtures("one_rank")
WORLD = World(rank=0, local_rank=0, size=1, device=torch.device("cpu"))
PAIRS = (preference_pair(6, 4, 5, index=1), preference_pair(20, 14, 9, index=2, turns=(4, 5, 6, 10, 11)))


class LocalPolicy:
    """Scores without an engine."""

    dtype, world = "float32", WORLD

    def __init__(self, model) -> None:
        self.scorer = PairScorer(model, "sdpa")

    @torch.no_grad()
    def probe(self, batch, training=False):
        self.scorer.train(training)
        return self.scorer(batch)[0]


def policy(model_type: str, **fields) -> LocalPolicy:
    config = tiny_config(model_type)
    for name, value in fields.items():
        setattr(config, name, value)
    model = tiny_model(config)
    turn_off_dropout(model)
    return LocalPolicy(model)


def test_llama_is_packed():
    verdict = judge(policy("llama"), PAIRS, 0, None)
    assert (verdict.layout, verdict.reason) == (PACKED, "")


@pytest.mark.parametrize(
    ("model_type", "reason"),
    [
        ("gpt_oss", "its attention takes 's_aux', which packs do not support"),
        ("gemma2", "its attention takes 'softcap', which packs do not support"),
        ("nemotron_h", "its log-probs of a pack differ from those of each row alone by"),
        ("doge", "its layers make an attention mask of their own"),
    ],
)
def test_what_packs_lack_is_padded(model_type, reason):
    """No obstacle is known in advance: the oracle finds it."""
    verdict = judge(policy(model_type), PAIRS, 0, None)
    assert verdict.layout == PADDED
    assert verdict.reason.startswith(reason)


@pytest.mark.parametrize("obstacle", [None, "known"])
def test_answers_without_a_second_row_are_one_row_each(obstacle):
    """As losses of single answers have them; a pair whose one row has no target is no probe, but an answer is."""
    answers = [
        dataclasses.replace(pair, rejected=pair.chosen[:1], rejected_mask=pair.chosen_mask[:1] * 0, label=True)
        for pair in PAIRS
    ]
    assert judge(policy("llama"), answers, 0, obstacle).layout == (PADDED if obstacle else PACKED)
    table = type("Table", (), {"packed_tokens": np.array([7, 5]), "__getitem__": lambda _, index: answers[index]})()
    assert probe_pairs(table) == (answers[1], answers[0])


def test_a_known_obstacle_is_not_tried():
    tried = []
    one = policy("llama")
    probe = one.probe
    one.probe = lambda batch, training=False: tried.append(type(batch)) or probe(batch, training)
    verdict = judge(one, PAIRS, 0, "it is too new")
    assert (verdict.layout, verdict.reason) == (PADDED, "it is too new")
    assert PackedPairs not in tried


@pytest.mark.parametrize("model_type", ["bloom", "mpt", "xglm"])
def test_attention_that_is_not_the_models_own_is_refused(model_type, monkeypatch):
    """Version 0.1 forced SDPA, with which a token of these models sees later ones; here only in padded rows."""
    one = policy(model_type)
    assert judge(one, PAIRS, 0, "known").layout == PADDED
    probe = one.probe

    def forced(batch, training=False):
        if not isinstance(batch, PaddedPairs):
            return probe(batch, training)
        with monkeypatch.context() as patch:
            patch.setattr(
                AttentionSwitch, "own", lambda _: setattr(one.scorer.model.config, "_attn_implementation", "sdpa")
            )
            return probe(batch, training)

    one.probe = forced
    verdict = judge(one, PAIRS, 0, "known")
    assert verdict.layout == REFUSED
    assert verdict.reason.startswith("known; its log-probs of padded rows differ from those of each row alone by")


def test_an_encoder_is_refused():
    verdict = judge(policy("bert"), PAIRS, 0, None)
    assert verdict.layout == REFUSED
    assert verdict.reason.startswith("it is not causal")


def test_a_decoder_of_the_same_class_is_not():
    assert judge(policy("bert", is_decoder=True), PAIRS, 0, "known").layout == PADDED


def test_a_model_that_fails_is_refused_with_one_line():
    one = policy("llama")

    def fail(batch, training=False):
        raise KeyError("first\nsecond")

    one.probe = fail
    assert judge(one, PAIRS, 0, None).layout == REFUSED
    assert judge(one, PAIRS, 0, None).reason == r"its forward raises KeyError: 'first\nsecond'"


@pytest.mark.parametrize("error", [MemoryError, torch.OutOfMemoryError, LaunchError])
def test_errors_that_say_nothing_about_the_model_are_not_caught(error):
    one = policy("llama")

    def fail(batch, training=False):
        raise error("no")

    one.probe = fail
    with pytest.raises(error):
        judge(one, PAIRS, 0, None)


def test_log_probs_that_are_not_finite_are_refused():
    one = policy("llama")
    one.scorer.model.lm_head.weight.data[5] = torch.nan
    verdict = judge(one, PAIRS, 0, None)
    assert (verdict.layout, verdict.reason) == (REFUSED, "its own log-probs of a row are not finite; check the weights")


def test_train_mode_must_compute_what_eval_mode_does():
    one = LocalPolicy(tiny_model(tiny_config("gpt2")))  # with its dropout
    torch.manual_seed(0)
    verdict = judge(one, PAIRS, 0, None)
    assert verdict.layout == REFUSED
    assert "of a pack in train mode differ" in verdict.reason
    assert judge(one, PAIRS, 0, None, deterministic=False).layout == PACKED


def test_shortest_and_longest_pair_with_targets_are_compared():
    rows = [preference_pair(9, 9, 9, index=1), preference_pair(1, 1, 1, index=2), preference_pair(2, 2, 2, index=3),
            preference_pair(50, 9, 9, index=4)]  # fmt: skip
    rows[1].rejected_mask[:] = 0
    table = Table(rows)
    assert [pair.index for pair in probe_pairs(table)] == [3, 4]
    for row in rows:
        row.chosen_mask[:] = 0
    assert [pair.index for pair in probe_pairs(table)] == [2, 4]


@dataclasses.dataclass
class Table:
    pairs: list

    @property
    def packed_tokens(self):
        return np.array([len(pair.chosen) + len(pair.rejected) - 2 - pair.prefix for pair in self.pairs])

    def __getitem__(self, index):
        return self.pairs[index]


def test_ranks_share_the_worst_distance(monkeypatch):
    """A rank whose own numbers agree refuses with the others."""
    monkeypatch.setattr(
        "minimind.training.setup.oracle.gather",
        lambda world, value: [value, 0.5] if isinstance(value, float) else [value, ""],
    )
    verdict = judge(policy("llama"), PAIRS, 0, None)
    assert verdict.layout == REFUSED
    assert "by 0.5 (rounding in float32 explains 0.0001)" in verdict.reason
