"""Three layouts of the same pairs give the same numbers: packed with shared prefixes, packed without, and padded.

The tolerances are those of `steps.py`. In float64 sharing a prefix changes nothing above 1e-12, so the differences in
float32 are rounding.
"""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
from torch.nn.attention import flex_attention
from transformers import PreTrainedModel

from minimind.data.packs import pack, pad
from minimind.data.table import PreferencePair
from minimind.engine.scorer import PairScorer
from minimind.objective.rows import row_log_probs
from tests.parity.steps import ATOL, MODELS, PAIRS, assert_same, random_model, run


@pytest.fixture(scope="module", params=MODELS)
def models(request) -> tuple[PreTrainedModel, PreTrainedModel]:
    """Policy and a differently seeded reference."""
    return random_model(request.param, seed=1), random_model(request.param, seed=2)


def assert_layouts_agree(models: tuple[PreTrainedModel, PreTrainedModel], pairs: list[PreferencePair]) -> None:
    shared, unshared, padded = pack(pairs), pack(pairs, share_prefix=False), pad(pairs)
    results = [run(*models, batch) for batch in (shared, unshared, padded)]
    assert_same(results[0], results[1])
    assert_same(results[0], results[2])


def test_layouts_agree_on_one_batch_of_all_kinds(models):
    assert_layouts_agree(models, list(PAIRS.values()))


@pytest.mark.parametrize("kind", PAIRS)
def test_layouts_agree_on_a_single_pair(models, kind):
    assert_layouts_agree(models, [PAIRS[kind]])


def test_pairs_of_a_pack_do_not_attend_to_each_other(models):
    """The row log-probs of one large pack are those of each pair packed alone."""
    pairs = list(PAIRS.values())
    with torch.no_grad():
        scorer = PairScorer(models[0].eval())
        together, alone = pack(pairs), [pack([one]) for one in pairs]
        rows = row_log_probs(scorer(together)[0], together.target_counts, average_log_prob=True)
        single = [row_log_probs(scorer(one)[0], one.target_counts, average_log_prob=True) for one in alone]
    torch.testing.assert_close(rows, torch.cat(single), rtol=ATOL, atol=ATOL)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("name", ["minimind2", "minimind3_moe", "qwen3"])
def test_training_with_flex_attention_equals_training_with_sdpa(name, compiled, monkeypatch):
    """Through the scorer, with gradient checkpointing, with compiled and with uncompiled blocks."""
    for attribute, value in (("_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True), ("_validate_device", lambda *_: None)):
        monkeypatch.setattr(flex_attention, attribute, value)  # torch forbids gradients of the uncompiled form
    results = []
    for backend in ("sdpa", "flex"):
        policy, reference = random_model(name, seed=1), random_model(name, seed=2)
        policy.gradient_checkpointing_enable({"use_reentrant": False})
        for block in policy.base_model.layers if compiled else ():
            block.compile(dynamic=True, backend="eager")
        results.append(run(policy, reference, pack(list(PAIRS.values())), backend))
    assert_same(*results)


@pytest.mark.parametrize("name", ["minimind2", "minimind3"])
def test_sharing_a_prefix_is_exact_in_float64(name):
    policy, reference = random_model(name, seed=1).double(), random_model(name, seed=2).double()
    pairs = list(PAIRS.values())
    shared, unshared = (run(policy, reference, pack(pairs, share_prefix=share)) for share in (True, False))
    assert shared.rows.dtype == torch.float64
    torch.testing.assert_close(shared.rows, unshared.rows, rtol=0, atol=1e-12)
    torch.testing.assert_close(shared.losses, unshared.losses, rtol=0, atol=1e-12)
    for key, gradient in shared.gradients.items():
        torch.testing.assert_close(unshared.gradients[key], gradient, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["minimind2_moe", "minimind3_moe"])
def test_auxiliary_loss_and_its_own_gradient_agree(name):
    """In the sum with the DPO loss a wrong auxiliary gradient could be smaller than the tolerance. Here it is alone,
    with a coefficient of 1, at which it is as large as the DPO loss."""
    model = random_model(name, seed=1).train()
    model.config.router_aux_loss_coef = 1.0
    pairs = list(PAIRS.values())
    results = []
    for batch in (pack(pairs), pack(pairs, share_prefix=False), pad(pairs)):
        model.zero_grad()
        _, aux_loss = PairScorer(model)(batch)
        aux_loss.backward()
        results.append((aux_loss.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}))
    assert results[0][0] > 0.5
    assert results[0][1]["model.layers.0.mlp.gate.weight"].abs().max() > 1e-3
    for aux_loss, gradients in results[1:]:
        torch.testing.assert_close(aux_loss, results[0][0], rtol=0, atol=ATOL)
        for key, gradient in results[0][1].items():
            torch.testing.assert_close(gradients[key], gradient, rtol=0, atol=ATOL)


@pytest.mark.parametrize("damage", ["plain causal attention", "positions do not restart", "prefix one too long"])
def test_a_damaged_pack_fails_the_comparison(damage):
    """Wrong attention, positions or segments change the log-probs by more than 1000 times the tolerance."""
    model, pairs = random_model("minimind2", seed=1).eval(), [PAIRS["plain"], PAIRS["multi_turn"]]
    right = pack(pairs)
    with torch.no_grad():
        wanted, _ = PairScorer(model)(right)
        if damage == "plain causal attention":
            model.config._attn_implementation = "sdpa"
            hidden = model.model(right.token_ids[None], position_ids=right.position_ids[None]).last_hidden_state[0]
            logits = model.lm_head(hidden[right.target_positions])
            got = logits.log_softmax(-1).gather(1, right.target_ids[:, None])[:, 0]
        else:
            if damage == "positions do not restart":
                wrong = dataclasses.replace(right, position_ids=torch.arange(len(right.token_ids)))
            else:
                (prefix, chosen, rejected), *rest = right.segments
                wrong = dataclasses.replace(right, segments=((prefix + 1, chosen - 1, rejected), *rest))
            got, _ = PairScorer(model)(wrong)
    assert (got - wanted).abs().max() > 1000 * ATOL


def test_targets_of_all_layouts_are_the_same_tokens_in_the_same_order():
    """With shared prefixes a shared target is listed once, without them once for each half."""
    for one, other in itertools.pairwise(PAIRS.values()):
        shared, padded = pack([one, other]), pad([one, other])
        assert torch.equal(shared.target_ids, padded.target_ids)
        assert torch.equal(shared.target_counts, padded.target_counts)
        unshared = pack([one, other], share_prefix=False)
        in_prefix, in_chosen, in_rejected = shared.target_counts.T
        expected = torch.stack((torch.zeros_like(in_prefix), in_prefix + in_chosen, in_prefix + in_rejected), dim=1)
        assert torch.equal(unshared.target_counts, expected)
