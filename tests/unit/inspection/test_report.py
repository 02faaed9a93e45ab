"""The report as JSON."""

from __future__ import annotations

import json

from minimind.inspection.report import to_json
from tests.unit.inspection.made import made_report


def test_json_has_every_attribute():
    made = made_report("文")
    read = json.loads(to_json(made))
    assert list(read) == list(vars(made))
    assert read["sources"][0]["refused"] == [
        {"reason": "bad 文", "rows": 2, "first": "lines 1, 2", "excerpt": "row 文"}
    ]
    assert read["examples"][0]["parts"]["chosen"][1] == {"text": "文 says", "counts": True}
    assert (made.rows, made.refused_rows) == (10, 2)
