"""Tokens of micro-batches, packed and padded, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from minimind.data.mix import Mix
from minimind.data.sampler import PairSampler
from minimind.inspection.packing import measure_packing

# Tokens that the model reads of both rows of each pair, and of each pair in a pack.
INPUTS = np.array([[10, 6], [4, 4], [20, 8], [2, 2]])
PACKED = np.array([11, 6, 28, 3])


def sampler(**given) -> PairSampler:
    options = {"mix": Mix.plain(4), "epochs": 1, "micro_batch_size": 2, "accumulation_steps": 1, "world_size": 1}
    return PairSampler(shuffle=False, seed=0, **{**options, **given})


def test_micro_batches_by_hand():
    """Pairs 1 and 2: 17 packed, 24 in rows, 4 rows of 10. Pairs 3 and 4: 31, 32 and 4 rows of 20."""
    found = measure_packing(sampler(), 2, INPUTS, PACKED, limit=33)
    assert (found.steps, found.micro_batches) == (2, 2)
    assert (found.packed, found.unpadded, found.padded, found.padded_to_limit) == (24, 28, 60, 128)
    assert found.largest == 31
    assert found.saved_by_prefixes == pytest.approx(4 / 60)
    assert found.saved_by_no_padding == pytest.approx(32 / 60)


def test_micro_batches_of_all_ranks_count():
    found = measure_packing(sampler(micro_batch_size=1, world_size=2), 2, INPUTS, PACKED, limit=33)
    assert (found.micro_batches, found.packed, found.padded) == (4, 12, 2 * (10 + 4 + 20 + 2) / 4)


def test_a_long_run_is_counted_in_part():
    many = sampler(mix=Mix.plain(4000), micro_batch_size=1)
    found = measure_packing(many, 4000, np.tile(INPUTS, (1000, 1)), np.tile(PACKED, 1000), limit=33)
    assert found.steps == 200
