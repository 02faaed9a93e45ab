"""The auxiliary loss of transformers' mixtures: the same on packs, on padded rows, and by the formula for each row."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from transformers import DbrxConfig, LlamaConfig, MixtralConfig

from minimind.data.packs import pack, pad
from minimind.engine.plain_row import plain_rows
from minimind.engine.scorer import PairScorer
from minimind.errors import PackError
from minimind.model.configuration import MiniMindConfig
from minimind.model.packed_attention import PackSegments
from minimind.model.router_loss import RouterLoss, _rows_of_tokens, has_router_loss, router_coefficient
from tests.parity.families import tiny_config, tiny_model
from tests.parity.steps import VOCAB, preference_pair
from tests.unit.weights.conftest import minimind

PAIRS = [preference_pair(6, 4, 5, index=1), preference_pair(20, 14, 9, index=2)]
FAMILIES = ("mixtral", "qwen3_moe", "granitemoe", "olmoe", "jetmoe", "phimoe")
LAYOUTS = {"packed": pack, "padded": pad}
# gpt-oss' attention has sinks, so that it is padded only.
CASES = [*((family, layout) for family in FAMILIES for layout in LAYOUTS), ("gpt_oss", "padded")]


def mixture(model_type: str):
    config = tiny_config(model_type)
    config.output_router_logits = True
    return tiny_model(config)


def by_hand(model) -> torch.Tensor:
    """E x sum over experts of (share of the choices) x (mean probability), over all layers and all tokens of all rows.

    Fedus et al., 2021, equations 4 to 6, with each row computed alone.
    """
    chosen, probabilities = [], []
    for row in (row for pair in PAIRS for row in plain_rows(pair)):
        out = model(input_ids=row.token_ids[None], output_router_logits=True, use_cache=False)
        for logits in out.router_logits:
            scores = logits.float().softmax(-1)
            best = scores.topk(model.num_experts_per_tok).indices
            chosen.append(torch.nn.functional.one_hot(best, model.num_experts).sum(1).float())
            probabilities.append(scores)
    return model.num_experts * (torch.cat(chosen).mean(0) * torch.cat(probabilities).mean(0)).sum()


def loss_and_gradients(model, loss) -> tuple[float, dict[str, torch.Tensor]]:
    model.zero_grad()
    loss.backward()
    return float(loss.detach()), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(("model_type", "layout"), CASES)
def test_loss_and_gradients_are_those_of_each_row_alone(model_type, layout):
    model = mixture(model_type)
    wanted, gradients = loss_and_gradients(model, by_hand(model) * 0.25)
    # In train mode Phi-3.5-MoE chooses experts at random, so only the switch of the scorer is set.
    scorer = PairScorer(model, "sdpa", router_aux_loss_coef=0.25)
    scorer.training = True
    got, found = loss_and_gradients(model, scorer(LAYOUTS[layout](PAIRS))[1])
    assert got == pytest.approx(wanted, rel=1e-5)
    assert gradients
    for name, gradient in gradients.items():
        torch.testing.assert_close(found[name], gradient, rtol=0, atol=1e-6, msg=lambda text, n=name: f"{n}: {text}")


@pytest.mark.parametrize("layout", [pack, pad], ids=["packed", "padded"])
def test_recomputed_activations_have_the_same_gradient(layout):
    model = mixture("mixtral").train()
    scorer = PairScorer(model, "sdpa").train()
    value, gradients = loss_and_gradients(model, scorer(layout(PAIRS))[1])
    getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)({"use_reentrant": False})
    again, found = loss_and_gradients(model, scorer(layout(PAIRS))[1])
    assert again == value > 0
    assert found.keys() == gradients.keys()
    assert all(torch.equal(found[name], gradients[name]) for name in found)


def test_evaluation_has_no_auxiliary_loss():
    scorer = PairScorer(mixture("mixtral"), "sdpa").eval()
    assert [float(scorer(layout(PAIRS))[1]) for layout in (pack, pad)] == [0.0, 0.0]


def test_a_loss_with_other_inputs_is_not_packed():
    """Doge's loss needs the number of its keys as well; its own forward knows it."""
    loss = RouterLoss(mixture("doge"))
    with pytest.raises(PackError, match="more than its router logits"):
        loss.of_pack(None, PackSegments(((1, 1, 1),)), training=True)


def test_a_forward_without_router_logits_is_not_packed():
    loss = RouterLoss(mixture("mixtral"))
    with pytest.raises(PackError, match="return no router logits"):
        loss.of_pack(SimpleNamespace(router_logits=()), PackSegments(((1, 1, 1),)), training=True)


def test_the_coefficient_replaces_that_of_minimind():
    model = minimind("minimind3_moe", vocab_size=VOCAB)
    one = PairScorer(copy.deepcopy(model)).train()(pack([PAIRS[0]]))[1]
    two = PairScorer(copy.deepcopy(model), router_aux_loss_coef=2e-3).train()(pack([PAIRS[0]]))[1]
    assert float(two) == pytest.approx(4 * float(one))  # MiniMind-3 has 5e-4
    assert float(PairScorer(model, router_aux_loss_coef=0.0).train()(pack([PAIRS[0]]))[1]) == 0.0


def test_a_shared_prefix_counts_for_both_rows():
    weights = _rows_of_tokens(PackSegments(((2, 1, 3), (0, 2, 0))), torch.device("cpu"))
    assert weights.tolist() == [2, 2, 1, 1, 1, 1, 1, 1]


@pytest.mark.parametrize(
    ("config", "given", "expected"),
    [
        (MixtralConfig(), None, 0.0),  # as in transformers: off
        (MixtralConfig(), 0.5, 0.5),
        (MixtralConfig(output_router_logits=True, router_aux_loss_coef=0.25), None, 0.25),
        (MixtralConfig(output_router_logits=True, router_aux_loss_coef=0.25), 0.0, 0.0),
        (tiny_config("jetmoe"), None, 0.0),
        (DbrxConfig(output_router_logits=True, ffn_config={"moe_loss_weight": 0.125}), None, 0.125),
        (LlamaConfig(), None, 0.0),
        (LlamaConfig(), 0.5, 0.0),  # refused before it comes to this
        (MiniMindConfig(use_moe=True, router_aux_loss_coef=0.25), None, 0.25),
        (MiniMindConfig(use_moe=True), 0.5, 0.5),
        (MiniMindConfig(), 0.5, 0.0),
    ],
)
def test_coefficient_of_a_run(config, given, expected):
    assert router_coefficient(config, given) == expected


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (MixtralConfig(), True),
        (tiny_config("deepseek_v3"), False),  # transformers computes none for it
        (LlamaConfig(), False),
        (MiniMindConfig(use_moe=True), True),
        (MiniMindConfig(), False),
    ],
)
def test_which_models_have_the_loss(config, expected):
    assert has_router_loss(config) is expected
