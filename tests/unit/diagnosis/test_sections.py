"""Sections about a run: what its files say, escaped, and a reason where there is nothing."""

from __future__ import annotations

import json

from minimind.diagnosis import sections
from minimind.diagnosis.language import Language
from minimind.diagnosis.reported import open_reported
from minimind.diagnosis.run_files import read_run
from tests.unit.diagnosis.made_runs import made_run, write_lines

SAY = Language("en")


def run_of(tmp_path, **settings):
    return read_run(made_run(tmp_path / "run", with_ledger=False, **settings))


def shown(content):
    return "".join(content)


def test_figures_are_those_before_and_after(tmp_path):
    assert sections.figures(run_of(tmp_path), SAY) == [
        ("3", "global steps"),
        ("0.5 → 0.9", "held-out accuracy, before and after"),
        ("0.7 → 0.4", "held-out loss, before and after"),
        ("1.5", "held-out margin"),
        ("90", "tokens a second"),
    ]


def test_findings_have_their_rule_and_remedy(tmp_path):
    run = run_of(tmp_path)
    assert "<b>length decides, step 3: </b>longer answers win &lt;i&gt;. try rdpo" in shown(sections.findings(run, SAY))
    assert "长度在起决定作用" in shown(sections.findings(run, Language("zh")))
    (run.folder / "findings.jsonl").unlink()
    assert "The guard has found nothing" in shown(sections.findings(read_run(run.folder), SAY))


def test_a_guard_that_was_off_has_found_nothing_and_says_so(tmp_path):
    assert "The guard was off" in shown(sections.findings(run_of(tmp_path, guard="off"), SAY))


def test_answers_are_those_of_the_first_and_of_the_last_step(tmp_path):
    run = run_of(tmp_path)
    found = shown(sections.answers(run, SAY))
    assert "Answers at step 0 and at step 3" in found
    assert "<h3>Hi &lt;p&gt;</h3>" in found
    assert found.index("answer &lt;0&gt;") < found.index("answer &lt;3&gt;")
    assert "&lt;2&gt;" not in found
    write_lines(run.folder / "samples.jsonl", [{"step": 1}])
    shown(sections.answers(read_run(run.folder), SAY))
    (run.folder / "samples.jsonl").unlink()
    assert "no samples" in shown(sections.answers(read_run(run.folder), SAY))


def test_exports_say_what_rounding_kept(tmp_path):
    run = run_of(tmp_path)
    assert "Nothing was exported" in shown(sections.exports(run, SAY))
    (run.folder / "q").mkdir()
    record = {
        "to": "qwen3",
        "dtype": "bfloat16",
        "differ_from_base": {"bfloat16": 0.125},
        "kept_of_training": {"bfloat16": 0.5},
        "recommended_dtype": "float32",
    }
    (run.folder / "q/export.json").write_text(json.dumps(record))
    found = shown(sections.exports(read_run(run.folder), SAY))
    for value in ("qwen3", "bfloat16", "12.5 %", "50 %", "float32"):
        assert f">{value}<" in found
    (run.folder / "q/export.json").write_text(json.dumps({"to": "pth", "dtype": "float16", "differ_from_base": None}))
    assert '<td class="number">-</td>' in shown(sections.exports(read_run(run.folder), SAY))


def test_the_runs_own_weights_have_their_share_too(tmp_path):
    run = run_of(tmp_path)
    write_lines(run.folder / "metrics.jsonl", [{"step": 3, "moved/float16": 0.25, "moved/float32": 1.0}])
    assert "dtype of the file: float16 25 %, float32 100 %." in shown(sections.exports(read_run(run.folder), SAY))


def test_the_cost_is_that_of_all_ranks(tmp_path):
    found = shown(sections.cost(run_of(tmp_path), SAY))
    assert "CPU &lt;x&gt;" in found
    # 3 steps of 4 pairs at 2 pairs a second, on 2 ranks.
    assert "<td>0:00:06</td>" in found
    assert "<td>0.00</td>" in found


def test_settings_have_their_origins_and_defaults_are_folded(tmp_path):
    found = shown(sections.settings(run_of(tmp_path, data_path=["a.jsonl", "<b>"]), SAY))
    head, folded = found.split("<details>", 1)
    assert "--data_path" in head
    assert "a.jsonl, &lt;b&gt;" in head
    assert "--seed" in folded
    assert "--seed" not in head
    assert "abc123" in folded
    assert "2.13.0" in folded


def test_runs_are_compared_by_numbers_and_settings(tmp_path):
    runs = [open_reported(made_run(tmp_path / f"beta{beta}", with_ledger=False, beta=beta)) for beta in (0.1, 0.3)]
    found = shown(sections.comparison(runs, SAY))
    assert '<th class="number">beta0.1</th>' in found
    assert '>--beta</span></td><td class="number">0.1</td><td class="number">0.3</td>' in found
    assert "--guard" not in found
    assert "None." in shown(sections.comparison([runs[0], runs[0]], SAY))


def test_long_texts_are_cut():
    assert len(sections.texts("t", "x" * 10_000)) < 4200
    assert sections.value(float("nan")) == "-"
