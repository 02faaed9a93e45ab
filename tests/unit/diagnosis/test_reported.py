"""A run as the report shows it."""

from __future__ import annotations

from minimind.diagnosis.reported import open_reported
from tests.unit.diagnosis.made_runs import made_run


def test_a_run_with_a_ledger_has_its_pairs(tmp_path):
    run = open_reported(made_run(tmp_path / "run"))
    assert run.files.name == "run"
    assert run.pairs is not None
    assert run.pairs.lists["hardest"][0].row is not None
    quick = open_reported(tmp_path / "run", texts=False)
    assert quick.pairs.lists["hardest"][0].row is None


def test_a_run_without_a_ledger_has_none(tmp_path):
    assert open_reported(made_run(tmp_path / "run", with_ledger=False)).pairs is None
