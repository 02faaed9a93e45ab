"""Options of reading rows: the key under which tokenised data is kept."""

from __future__ import annotations

import dataclasses
import json

import pytest

from minimind.data.shapes import ShapeOptions

OTHERS = {"data_format": "trl", "pairing": "all", "score_gap": 0.5}


@pytest.mark.parametrize("name", OTHERS)
def test_every_option_changes_the_key(name):
    key = ShapeOptions().key()
    changed = dataclasses.replace(ShapeOptions(), **{name: OTHERS[name]}).key()
    assert json.loads(json.dumps(changed)) == {**key, name: OTHERS[name]} != key


def test_no_option_is_forgotten():
    assert list(OTHERS) == [field.name for field in dataclasses.fields(ShapeOptions)]
