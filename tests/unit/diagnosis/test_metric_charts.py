"""Curves: one chart for each metric that was logged, with a line for each set or for each run."""

from __future__ import annotations

from minimind.diagnosis.language import Language
from minimind.diagnosis.metric_charts import charts
from minimind.diagnosis.run_files import read_run
from tests.unit.diagnosis.made_runs import made_run, write_lines
from tests.unit.pages.made import parsed, paths

SAY = Language("en")


def test_a_run_has_a_chart_of_each_metric_it_has_logged(tmp_path):
    run = read_run(made_run(tmp_path / "run", with_ledger=False))
    found = list(charts([run], SAY))
    titles = [one.partition("<figcaption>")[2].partition("<")[0] for one in found]
    assert titles == [
        "Loss",
        "Accuracy: share of pairs ranked rightly",
        "Margin of rewards",
        "Tokens per second",
    ]
    assert len(paths(parsed(found[0]))) == 2
    assert "training: 0.2333" in found[0]
    assert "held out: 0.4" in found[0]


def test_halves_and_named_sets_are_lines_of_their_own(tmp_path):
    folder = made_run(tmp_path / "run", with_ledger=False)
    entry = {f"{prefix}rewards/{half}": 1.0 for prefix in ("eval/zh/", "") for half in ("chosen", "rejected")}
    write_lines(folder / "metrics.jsonl", [{"step": 1, "eval/zh/loss": 0.5, **entry}])
    (rewards,) = [one for one in charts([read_run(folder)], SAY) if "Rewards" in one]
    for name in ("training, chosen", "training, rejected", "held out zh, chosen", "held out zh, rejected"):
        assert f"</i>{name}: 1</span>" in rewards


def test_several_runs_are_lines_of_one_chart(tmp_path):
    runs = [read_run(made_run(tmp_path / name, with_ledger=False)) for name in ("a<b", "c")]
    loss, *_ = charts(runs, SAY)
    assert len(paths(parsed(loss))) == 2
    assert "a&lt;b, held out: 0.4" in loss
