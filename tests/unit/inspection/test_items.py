"""Words for the items of each job, and which statistics they have."""

from __future__ import annotations

import pytest

from minimind.config.jobs import JOBS
from minimind.inspection.items import ITEMS
from minimind.inspection.pairs import PairArrays


def test_every_job_has_a_report():
    assert {job.items for job in JOBS.values()} == set(ITEMS)
    assert {job.items: job.rows for job in JOBS.values()} == {name: len(kind.halves) for name, kind in ITEMS.items()}


@pytest.mark.parametrize(
    ("items", "has_two", "has_prompts", "learnt", "lengths"),
    [
        ("pairs", True, True, "chosen answers", ["prompt", "chosen", "rejected"]),
        ("conversations", False, True, "answers", ["whole", "counted"]),
        ("texts", False, False, "texts", ["whole"]),
    ],
)
def test_what_items_have(items, has_two, has_prompts, learnt, lengths):
    kind = ITEMS[items]
    found = [length.name for length in kind.lengths]
    assert (kind.has_two, kind.has_prompts, kind.learnt, found) == (has_two, has_prompts, learnt, lengths)
    assert all(hasattr(PairArrays, length.attribute) for length in kind.lengths)
