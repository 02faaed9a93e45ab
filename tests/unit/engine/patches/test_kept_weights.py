"""Kept weights: marked as in use, and released whatever happens. Real ZeRO-3: tests/distributed/test_sampling.py."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from minimind.engine.patches.kept_weights import KEEP_GATHERED, kept_weights


def test_weights_are_marked_within_and_released_after():
    released = []
    engine = SimpleNamespace(empty_partition_cache=lambda: released.append(True))
    parameters = [SimpleNamespace(ds_active_sub_modules=set()) for _ in range(2)]

    def fail():
        assert all(parameter.ds_active_sub_modules for parameter in parameters)
        assert released == []
        raise KeyError

    with pytest.raises(KeyError), kept_weights(engine, parameters):
        fail()
    assert not any(parameter.ds_active_sub_modules for parameter in parameters)
    assert released == [True]


def test_the_patch_needs_the_attribute_that_it_uses():
    assert KEEP_GATHERED.missing(SimpleNamespace()) == ["ds_active_sub_modules"]
    assert KEEP_GATHERED.missing(SimpleNamespace(ds_active_sub_modules=set())) == []
