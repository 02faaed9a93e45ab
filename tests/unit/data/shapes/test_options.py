"""Options of reading rows: the key under which tokenised data is kept."""

from __future__ import annotations

import dataclasses
import json

import pytest

from minimind.data.shapes import Items, ShapeOptions
from minimind.data.shapes.dataset_info import DatasetInfo
from minimind.data.shapes.turns import TurnNames

ENTRY = DatasetInfo(origin="x", shape="alpaca", columns={"instruction": "q"}, names=TurnNames())
OTHERS = {"data_format": "trl", "pairing": "all", "score_gap": 0.5, "dataset_info": ENTRY, "items": Items.ANSWERS}


@pytest.mark.parametrize("name", OTHERS)
def test_every_option_changes_the_key(name):
    key = ShapeOptions().key()
    changed = dataclasses.replace(ShapeOptions(), **{name: OTHERS[name]}).key()
    assert {other for other in key if json.dumps(changed[other]) != json.dumps(key[other])} == {name}


def test_no_option_is_forgotten():
    assert list(OTHERS) == [field.name for field in dataclasses.fields(ShapeOptions)]
