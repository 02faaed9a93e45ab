"""Sections about a run: what its files say, escaped, and a reason where there is nothing."""

from __future__ import annotations

import dataclasses
import json
import re

import pytest

from minimind.diagnosis import sections
from minimind.diagnosis.curves import Finding
from minimind.diagnosis.guard import RULES
from minimind.diagnosis.language import Language
from minimind.diagnosis.reported import open_reported
from minimind.diagnosis.run_files import FINDINGS_FILE, read_run
from minimind.pages.markup import joined
from minimind.training.events import Found
from minimind.training.findings import FindingsFile
from tests.unit.diagnosis.made_runs import made_run, write_lines

SAY, CHINESE = Language("en"), Language("zh")


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


def test_a_run_that_was_killed_says_how_many_steps_it_had_to_take(tmp_path):
    run = run_of(tmp_path)
    identity = {**run.record["identity"], "total_steps": 1200}
    killed = dataclasses.replace(run, record={**run.record, "identity": identity})
    assert sections.figures(killed, SAY)[0] == ("3 / 1,200", "global steps")
    finished = dataclasses.replace(run, record={**run.record, "identity": {"total_steps": 3}})
    assert sections.figures(finished, SAY)[0] == ("3", "global steps")


def test_findings_have_their_rule_and_remedy(tmp_path):
    run = run_of(tmp_path)
    assert "<b>length decides, step 3: </b>longer answers win &lt;i&gt;: try rdpo" in shown(sections.findings(run, SAY))
    # Written by an earlier version, without numbers: its line stays as it was said.
    assert "<b>长度在起决定作用，第 3 步：</b>longer answers win &lt;i&gt;" in shown(sections.findings(run, CHINESE))
    (run.folder / "findings.jsonl").unlink()
    assert "The guard has found nothing" in shown(sections.findings(read_run(run.folder), SAY))


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_a_finding_is_said_in_chinese_with_its_numbers(rule, tmp_path):
    run = run_of(tmp_path)
    for form, text in rule.texts.items():
        names = re.findall(r"{(\w+)", f"{text}{rule.remedy}")
        values = {name: "bfloat16 10%" if name == "shares" else 0.25 for name in names}
        finding = Finding(rule=rule.name, step=3, text="said", remedy="advised", form=form, values=values)
        (run.folder / FINDINGS_FILE).unlink()
        FindingsFile(run.folder, enabled=True).add("key", Found(step=3, finding=finding))
        chinese, english = (shown(sections.findings(read_run(run.folder), say)) for say in (CHINESE, SAY))
        assert joined(CHINESE(text, **values), flags=True) in chinese
        assert joined(CHINESE(rule.remedy, **values), flags=True) in chinese
        assert "said: advised" in english


WINS = {"correlation": 0.75, "equal": 0.5, "accuracy": 0.7}


@pytest.mark.parametrize(
    "changed", [{"form": "other"}, {"form": ["longer"]}, {"values": {}}, {"values": {**WINS, "equal": "?"}}]
)
def test_a_finding_of_another_version_stays_as_it_was_said(changed, tmp_path):
    run = run_of(tmp_path)
    entry = {"step": 3, "rule": "length", "text": "said", "remedy": "advised", "form": "longer", "values": WINS}
    write_lines(run.folder / FINDINGS_FILE, [entry])
    assert "+0.75" in shown(sections.findings(read_run(run.folder), CHINESE))
    write_lines(run.folder / FINDINGS_FILE, [{**entry, **changed}])
    assert "said。advised" in shown(sections.findings(read_run(run.folder), CHINESE))


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
    found = shown(sections.settings(run_of(tmp_path, data_path=["a.jsonl", "<b>"], ledger=True), SAY))
    assert '<span class="flag">--ledger</span></td><td>1</td>' in found
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
    assert ">--beta</span></td><td>0.1</td><td>0.3</td>" in found
    assert "--guard" not in found
    assert "None." in shown(sections.comparison([runs[0], runs[0]], SAY))


def test_long_texts_are_cut():
    assert len(sections.texts("t", "x" * 10_000)) < 4200
    assert sections.value(float("nan")) == "-"
