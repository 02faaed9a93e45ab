"""The scorer: log-probs of the same targets from packs and padded rows, against the model's own logits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from minimind.data.packs import pack, pad
from minimind.data.table import PreferencePair
from minimind.engine.plain_row import plain_rows
from minimind.engine.scorer import ModelUse, PairScorer
from minimind.errors import PackError
from tests.parity.families import tiny_config, tiny_model
from tests.unit.weights.conftest import llama, minimind

# Rows of 6 and 5 tokens that share 3; the last three (two) tokens of a row are targets.
PAIR = PreferencePair(
    chosen=np.array([3, 7, 9, 11, 20, 30], np.int32),
    rejected=np.array([3, 7, 9, 40, 50], np.int32),
    chosen_mask=np.array([0, 0, 0, 1, 1, 1], np.uint8),
    rejected_mask=np.array([0, 0, 0, 1, 1], np.uint8),
    prefix=3,
    index=1,
)


def expected(model) -> list[float]:
    """Chosen's three targets, then rejected's two, from the model's own logits over each row alone."""
    out = []
    for row, mask in ((PAIR.chosen, PAIR.chosen_mask), (PAIR.rejected, PAIR.rejected_mask)):
        tokens = torch.from_numpy(row.astype(np.int64))[None]
        log_probs = model(input_ids=tokens).logits[0].float().log_softmax(-1)
        out += [float(log_probs[place - 1, row[place]]) for place in np.flatnonzero(mask)]
    return out


@pytest.mark.parametrize("layout", [pack, pad], ids=["packed", "padded"])
@pytest.mark.parametrize("model", [lambda: minimind("minimind3"), lambda: llama(tied=True)], ids=["minimind", "llama"])
@torch.no_grad()
def test_log_probs_are_those_of_each_row_alone(model, layout):
    model = model()
    reference = expected(model)
    log_probs, aux_loss = PairScorer(model)(layout([PAIR]))
    assert log_probs.dtype == torch.float32
    assert log_probs.tolist() == pytest.approx(reference, abs=1e-5)
    assert float(aux_loss) == 0.0


def test_a_mixture_of_experts_has_an_auxiliary_loss():
    model = minimind("minimind3_moe").train()
    assert PairScorer(model)(pack([PAIR]))[1].item() > 0


class ScaledHead(nn.Linear):
    """A head with a factor that is 1 before training."""

    def __init__(self, *sizes: int) -> None:
        super().__init__(*sizes, bias=False)
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, hidden):
        return super().forward(hidden) * self.scale


def test_a_head_with_more_than_a_weight_is_not_packed():
    """Its log-probs would be right and the gradient of its factor missing."""
    model = llama(tied=False)
    model.lm_head = ScaledHead(32, 61)
    with pytest.raises(PackError, match=r"its output head is not a linear layer \(ScaledHead\)"):
        PairScorer(model)(pack([PAIR]))
    assert PairScorer(model)(pad([PAIR]))[0].isfinite().all()


def test_parameters_between_backbone_and_head_are_not_packed():
    model = llama(tied=False)
    model.extra = nn.Linear(2, 2)
    with pytest.raises(PackError, match=r"parameters outside its backbone and its head \(extra\.weight\)"):
        PairScorer(model)(pack([PAIR]))


@torch.no_grad()
def test_a_plain_row_is_scored_alone():
    model = llama(tied=True)
    rows = [PairScorer(model)(row)[0] for row in plain_rows(PAIR)]
    assert torch.cat(rows).tolist() == pytest.approx(expected(model), abs=1e-6)


@torch.no_grad()
def test_padded_rows_have_the_models_own_attention_after_a_pack():
    """Gemma-2's soft capping exists in eager attention only."""
    model = tiny_model(tiny_config("gemma2"))
    reference = expected(model)
    scorer = PairScorer(model)
    with pytest.raises(PackError, match="softcap"):
        scorer(pack([PAIR]))
    assert scorer(pad([PAIR]))[0].tolist() == pytest.approx(reference, abs=1e-5)


@pytest.mark.parametrize("layout", [pack, pad], ids=["packed", "padded"])
def test_collisions_stand_beside_the_log_probs(layout):
    """The sum of squared probabilities at each target's position, of each row alone; only log-probs have a gradient."""
    model = llama(tied=True)
    squares = []
    for row, mask in ((PAIR.chosen, PAIR.chosen_mask), (PAIR.rejected, PAIR.rejected_mask)):
        logits = model(input_ids=torch.from_numpy(row.astype(np.int64))[None]).logits[0].float()
        squares += [logits[place - 1].softmax(-1).square().sum().log().item() for place in np.flatnonzero(mask)]
    batch, scorer = layout([PAIR]), PairScorer(model)
    alone, _ = scorer(batch)
    scorer.collisions = True
    both, _ = scorer(batch)
    assert torch.equal(both[:, 0], alone)
    assert both[:, 1].tolist() == pytest.approx(squares, abs=1e-5)
    both[:, 1].sum().backward()
    assert all(parameter.grad is None or not parameter.grad.any() for parameter in model.parameters())


@pytest.mark.parametrize("collisions", [False, True])
@pytest.mark.parametrize("layout", [pack, pad], ids=["packed", "padded"])
def test_distributions_stand_last(layout, collisions):
    """Entropy, and whether the target is the likeliest token, at each target's position of each row alone."""
    model = llama(tied=True)
    expected = []
    for row, mask in ((PAIR.chosen, PAIR.chosen_mask), (PAIR.rejected, PAIR.rejected_mask)):
        logits = model(input_ids=torch.from_numpy(row.astype(np.int64))[None]).logits[0].float()
        for place in np.flatnonzero(mask):
            entropy = torch.special.entr(logits[place - 1].softmax(-1)).sum().item()
            expected.append((entropy, float(logits[place - 1].argmax() == row[place])))
    batch, scorer = layout([PAIR]), PairScorer(model)
    scorer.collisions = collisions
    alone, _ = scorer(batch)
    scorer.distributions = True
    columns, _ = scorer(batch)
    assert columns.shape[1] == 3 + collisions
    assert torch.equal(columns[:, : 1 + collisions].squeeze(1), alone)
    assert columns[:, -2].tolist() == pytest.approx([entropy for entropy, _ in expected], abs=1e-5)
    assert columns[:, -1].tolist() == [hit for _, hit in expected]
    columns[:, -2:].sum().backward()
    assert all(parameter.grad is None or not parameter.grad.any() for parameter in model.parameters())


@torch.no_grad()
def test_another_computation_gets_the_model_with_its_own_attention():
    scorer = PairScorer(minimind("minimind3"))
    own = scorer.model.config._attn_implementation
    scorer(pack([PAIR]))
    use = ModelUse(compute=lambda model: (model, model.config._attn_implementation))
    log_probs, _ = scorer(use)
    assert use.result == (scorer.model, own)
    assert log_probs.shape == (0,)
