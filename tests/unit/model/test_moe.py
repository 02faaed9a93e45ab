"""Mixture of experts: stacked experts against a loop, experts without tokens, the auxiliary loss by hand."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from minimind import MiniMindConfig
from minimind.model.moe import MixtureOfExperts, TokenRows, router_aux_loss
from minimind.model.packed_attention import PackSegments

H = 16


def moe(generation: int, **fields) -> MixtureOfExperts:
    torch.manual_seed(generation)
    config = MiniMindConfig(generation=generation, hidden_size=H, use_moe=True, moe_intermediate_size=24, **fields)
    module = MixtureOfExperts(config)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0, 0.3)
    return module


def padded_rows(batch: int, length: int) -> TokenRows:
    return TokenRows(mask=torch.ones(batch, length))


def gradients_of(out: Tensor, module: MixtureOfExperts, x: Tensor) -> dict[str, Tensor]:
    """Gradients of x and of every parameter, for a random gradient of the output."""
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(9))
    names, parameters = zip(*module.named_parameters(), strict=True)
    return dict(zip(("x", *names), torch.autograd.grad(out, (x, *parameters), grad), strict=True))


def naive(module: MixtureOfExperts, x: Tensor) -> Tensor:
    """A loop over tokens and experts, as the formula in the papers."""
    config, tokens = module.config, []
    for token in x[0]:
        out = torch.zeros_like(token)
        scores = (module.gate.weight @ token).softmax(0)
        best = sorted(range(config.num_experts), key=lambda e: -scores[e].item())[: config.num_experts_per_tok]
        weights = [scores[expert] for expert in best]
        if config.norm_topk_prob and (config.generation == 3 or config.num_experts_per_tok > 1):
            weights = [weight / sum(weights) for weight in weights]
        for expert, weight in zip(best, weights, strict=True):
            gate, up, down = (getattr(module.experts, f"{n}_proj")[expert] for n in ("gate", "up", "down"))
            out = out + weight * (down @ (F.silu(gate @ token) * (up @ token)))
        for shared in module.shared_experts:
            out = shared(token, out)
        tokens.append(out)
    return torch.stack(tokens)[None]


CASES = {
    "generation 2": (2, {}),
    "generation 3": (3, {}),
    "generation 2, one expert a token, not normalised": (2, {"num_experts_per_tok": 1}),
    "generation 3, two experts a token": (3, {"num_experts_per_tok": 2, "num_experts": 6}),
    "no normalisation": (2, {"norm_topk_prob": False}),
    "two shared experts": (2, {"n_shared_experts": 2}),
    "every expert": (2, {"num_experts_per_tok": 4}),
    "one expert": (3, {"num_experts": 1}),
}


@pytest.mark.parametrize("name", CASES)
def test_stacked_experts_equal_a_loop_over_tokens_and_experts(name):
    generation, fields = CASES[name]
    module = moe(generation, **fields)
    x = torch.randn(1, 11, H, generator=torch.Generator().manual_seed(5)).requires_grad_()
    out, _ = module(x, padded_rows(1, 11))
    expected = naive(module, x)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-6)
    gradients = gradients_of(out, module, x)
    for key, gradient in gradients_of(expected, module, x).items():
        torch.testing.assert_close(gradients[key], gradient, rtol=1e-5, atol=1e-5, msg=lambda m, key=key: f"{key}: {m}")


@pytest.mark.parametrize("generation", [2, 3])
def test_an_expert_without_tokens_has_a_gradient_of_zero(generation):
    """Zero and not None: all ranks must reduce the same tensors, for any tokens."""
    module = moe(generation).train()
    x = torch.rand(1, 9, H) + 0.1
    with torch.no_grad():
        # Positive inputs times a negative row: expert 3 scores least for every token.
        module.gate.weight[3] = -5
        module.gate.weight[:3] = module.gate.weight[:3].abs()
    out, _ = module(x, padded_rows(1, 9))
    out.square().sum().backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
    for stack in (module.experts.gate_proj, module.experts.up_proj, module.experts.down_proj):
        assert torch.equal(stack.grad[3], torch.zeros_like(stack[3]))
        assert stack.grad[:3].abs().sum() > 0


@pytest.mark.parametrize("generation", [2, 3])
def test_all_tokens_may_go_to_the_same_expert(generation):
    module = moe(generation, num_experts_per_tok=1)
    with torch.no_grad():
        module.gate.weight[:] = -5
        module.gate.weight[2] = 5
    x = torch.rand(1, 7, H) + 0.1
    out, _ = module(x, padded_rows(1, 7))
    torch.testing.assert_close(out, naive(module, x), rtol=1e-5, atol=1e-6)


def test_router_scores_are_float32_for_bf16_inputs(either_kernels):
    module = moe(3).bfloat16()
    out, aux_loss = module.train()(torch.randn(1, 5, H).bfloat16(), padded_rows(1, 5))
    assert out.dtype == torch.bfloat16
    assert aux_loss.dtype == torch.float32


# Four tokens, two experts. Scores of expert 0: 3/4, 1/2, 1/4, 1/4 (of expert 1 the rest); chosen: 0, 0, 1, 1.
SCORES = torch.tensor([[0.75, 0.25], [0.5, 0.5], [0.25, 0.75], [0.25, 0.75]])
CHOSEN = torch.tensor([[0], [0], [1], [1]])


def aux_config(generation: int, **fields) -> MiniMindConfig:
    fields = {"num_experts": 2, "num_experts_per_tok": 1, "router_aux_loss_coef": 1.0, **fields}
    return MiniMindConfig(generation=generation, hidden_size=H, use_moe=True, **fields)


def test_aux_loss_of_generation_3_by_hand():
    """All tokens together: load (1/2, 1/2), mean scores (7/16, 9/16): 2 * (7/32 + 9/32) = 1."""
    loss = router_aux_loss(aux_config(3), SCORES, CHOSEN, padded_rows(2, 2))
    assert loss.item() == pytest.approx(1.0)


def test_aux_loss_of_generation_2_by_hand():
    """Each row alone: the first has all its load on expert 0, (2, 0) * (5/8, 3/8) = 5/4; the second on expert
    1, (0, 2) * (1/4, 3/4) = 3/2. Their mean is 11/8."""
    loss = router_aux_loss(aux_config(2), SCORES, CHOSEN, padded_rows(2, 2))
    assert loss.item() == pytest.approx(11 / 8)


def test_aux_loss_of_generation_2_over_all_tokens_by_hand():
    loss = router_aux_loss(aux_config(2, seq_aux=False), SCORES, CHOSEN, padded_rows(2, 2))
    assert loss.item() == pytest.approx(1.0)


# Both experts chosen by every token (k = 2): the load is even for any scores. Generation 2 divides by k
# and has 2 * (1/2 * (7/16 + 9/16)) = 1; MiniMind-3 does not and has 2.
@pytest.mark.parametrize(("generation", "seq_aux", "expected"), [(2, True, 1.0), (2, False, 1.0), (3, False, 2.0)])
def test_aux_loss_of_two_experts_a_token(generation, seq_aux, expected):
    config = aux_config(generation, seq_aux=seq_aux, num_experts_per_tok=2)
    both = torch.tensor([[0, 1]] * 4)
    assert router_aux_loss(config, SCORES, both, padded_rows(2, 2)).item() == pytest.approx(expected)


def test_aux_loss_ignores_padding():
    """The second row's last token is a pad: load (0, 2), scores (1/4, 3/4) of its first alone: 3/2 as before;
    of the first row's two 5/4. Then the pad's choice must not matter."""
    mask = torch.tensor([[1.0, 1.0], [1.0, 0.0]])
    scores = torch.cat((SCORES[:3], torch.tensor([[1.0, 0.0]])))
    chosen = torch.tensor([[0], [0], [1], [0]])
    loss = router_aux_loss(aux_config(2), scores, chosen, TokenRows(mask=mask))
    assert loss.item() == pytest.approx(11 / 8)
    # generation 3: load (2/3, 1/3), mean scores ((3/4 + 1/2 + 1/4)/3, the rest) = (1/2, 1/2): 2 * 1/2
    loss = router_aux_loss(aux_config(3), scores, chosen, TokenRows(mask=mask))
    assert loss.item() == pytest.approx(1.0)


def test_prefix_of_a_pack_counts_for_both_rows():
    """One pair: prefix token 0, chosen tokens 1 and 2, rejected token 3. The rows are 0 1 2 and 0 3."""
    rows = TokenRows(pack=PackSegments(((1, 2, 1),)))
    assert rows.row_sums(SCORES).tolist() == [[1.5, 1.5], [1.0, 1.0]]


@pytest.mark.parametrize("generation", [2, 3])
def test_aux_loss_of_a_pack_equals_that_of_padded_rows(generation):
    """The same four tokens as a pack, and as two padded rows: 0 1 2 and 0 3 pad."""
    packed = router_aux_loss(aux_config(generation), SCORES, CHOSEN, TokenRows(pack=PackSegments(((1, 2, 1),))))
    tokens = [0, 1, 2, 0, 3, 0]
    mask = torch.tensor([[1.0, 1.0, 1.0], [1.0, 1.0, 0.0]])
    padded = router_aux_loss(aux_config(generation), SCORES[tokens], CHOSEN[tokens], TokenRows(mask=mask))
    torch.testing.assert_close(packed, padded)


@pytest.mark.parametrize("generation", [2, 3])
def test_rows_that_stand_alone_in_a_pack_count_once(generation):
    """Texts and conversations: 0 1 2 and 3, each a segment without prefix and without a rejected half."""
    scores = SCORES.clone().requires_grad_()
    rows = TokenRows(pack=PackSegments(((0, 3, 0), (0, 1, 0))))
    packed = router_aux_loss(aux_config(generation), scores, CHOSEN, rows)
    mask = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, 0.0]])
    same = SCORES.clone().requires_grad_()
    tokens = [0, 1, 2, 3, 0, 0]
    padded = router_aux_loss(aux_config(generation), same[tokens], CHOSEN[tokens], TokenRows(mask=mask))
    torch.testing.assert_close(packed, padded)
    gradients = [torch.autograd.grad(loss, leaf)[0] for loss, leaf in ((packed, scores), (padded, same))]
    torch.testing.assert_close(*gradients)


def test_aux_loss_is_zero_in_eval_mode_and_without_a_coefficient():
    x = torch.randn(1, 5, H)
    assert moe(2).train()(x, padded_rows(1, 5))[1] > 0
    assert moe(2).eval()(x, padded_rows(1, 5))[1] == 0
    assert moe(2, aux_loss_alpha=0.0).train()(x, padded_rows(1, 5))[1] == 0
