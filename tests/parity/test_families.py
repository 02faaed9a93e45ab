"""Every causal language model of transformers: packed and exact, padded and exact, or refused. Nothing else exists.

Exact, in float32: the log-probs of every row, and the gradient of every parameter, are those of the model as
transformers builds it, one row at a time, with its default attention. The verdicts are those of the table
`families.json`, which the README of `minimind/` shows. A new transformers that changes one fails here by the family's
name; `python -m tests.parity.verdicts` writes the table anew.
"""

from __future__ import annotations

import functools

import pytest
import torch
from torch import Tensor

from minimind.data.packs import pack, pad
from minimind.engine.plain_row import plain_rows
from minimind.engine.scorer import PairScorer
from minimind.objective.rows import row_log_probs
from minimind.training.setup.oracle import PACKED, PADDED, REFUSED
from tests.parity.verdicts import (
    NOT_BUILT,
    PAIRS,
    Family,
    all_cases,
    examine,
    expected_verdicts,
)

pytestmark = [pytest.mark.usefixtures("one_rank"), pytest.mark.filterwarnings("ignore")]
# Of a row's log-prob; of a gradient, relative to the largest element of the family's gradients.
ROW_TOLERANCE, GRADIENT_TOLERANCE = 2e-5, 1e-4
# A different weight for each row, so that no two rows can be confused.
WEIGHTS = torch.tensor([[1.0, -0.5], [0.75, 1.25], [-1.5, 0.25]])
# By their names: to ask transformers for the families' configurations takes each process that collects tests seconds.
CASES = expected_verdicts()
NARROWED = ", narrow"


@pytest.mark.parametrize("name", CASES)
def test_family_is_what_the_table_says(name):
    family, expected = examine(name.removesuffix(NARROWED), name.endswith(NARROWED)), CASES[name]
    if family.plain is not None and expected.get("reason", "").startswith("ImportError"):
        pytest.skip("the table was written without a package that this family needs")
    assert family.row == expected
    assert family.verdict in (PACKED, PADDED, REFUSED, NOT_BUILT)
    if family.verdict in (PACKED, PADDED):
        assert_exact(family)
        assert_causal(family)


def test_the_table_has_no_other_families():
    cases = all_cases()
    assert list(CASES) == list(cases)
    assert all(case == (name.removesuffix(NARROWED), name.endswith(NARROWED)) for name, case in cases.items())


def assert_exact(family: Family) -> None:
    layout = pack if family.verdict == PACKED else functools.partial(pad, pad_id=5)
    batch = layout(PAIRS)
    log_probs, _ = PairScorer(family.trained.train(), "sdpa")(batch)
    rows = row_log_probs(log_probs, batch.target_counts, average_log_prob=True)
    (rows * WEIGHTS).sum().backward()
    expected = torch.stack([plain_row_mean(family.plain, row) for pair in PAIRS for row in plain_rows(pair)])
    (expected.view_as(WEIGHTS) * WEIGHTS).sum().backward()
    torch.testing.assert_close(rows, expected.view_as(WEIGHTS), rtol=0, atol=ROW_TOLERANCE)
    wanted = {name: parameter.grad for name, parameter in family.plain.named_parameters()}
    largest = max(float(grad.abs().max()) for grad in wanted.values() if grad is not None)
    assert largest > 0
    for name, parameter in family.trained.named_parameters():
        got, grad = parameter.grad, wanted.pop(name)
        got, grad = (torch.zeros_like(parameter) if one is None else one for one in (got, grad))
        torch.testing.assert_close(
            got, grad, rtol=0, atol=GRADIENT_TOLERANCE * largest, msg=lambda text, n=name: f"{n}: {text}"
        )
    assert not wanted


def plain_row_mean(model, row) -> Tensor:
    """Mean log-prob of a row's targets by the model's own forward, with its own softmax over all logits."""
    logits = model(input_ids=row.token_ids[None], use_cache=False).logits[0].float()
    return logits.log_softmax(-1)[row.target_positions, row.target_ids].mean()


@torch.no_grad()
def assert_causal(family: Family) -> None:
    """Another last token changes nothing before it."""
    row, _ = plain_rows(PAIRS[1])
    other = row.token_ids.clone()
    other[-1] = 90 - other[-1]
    assert other[-1] != row.token_ids[-1]
    one, two = (family.plain(input_ids=ids[None], use_cache=False).logits[0, :-1] for ids in (row.token_ids, other))
    torch.testing.assert_close(one, two, rtol=0, atol=ROW_TOLERANCE)
