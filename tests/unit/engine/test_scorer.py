"""The scorer: log-probs of the same targets from packs and padded rows, against the model's own logits."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from minimind.data.packs import pack, pad
from minimind.data.table import PreferencePair
from minimind.engine.scorer import PairScorer
from tests.unit.weights.conftest import llama, minimind

# Rows of 6 and 5 tokens that share 3; the last three (two) tokens of a row are targets.
PAIR = PreferencePair(
    chosen=np.array([3, 7, 9, 11, 20, 30], np.int32),
    rejected=np.array([3, 7, 9, 40, 50], np.int32),
    chosen_mask=np.array([0, 0, 0, 1, 1, 1], np.uint8),
    rejected_mask=np.array([0, 0, 0, 1, 1], np.uint8),
    prefix=3,
    line=1,
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
