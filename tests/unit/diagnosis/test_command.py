"""The reporting script and the report at the end of a run."""

from __future__ import annotations

import json

import pytest

from minimind.diagnosis import command
from minimind.diagnosis.command import main, report_finished
from tests.unit.diagnosis.made_runs import made_run


def test_a_page_is_written_into_the_runs_folder(tmp_path, capsys):
    run = made_run(tmp_path / "run")
    main([str(run), "--lang", "zh"])
    assert capsys.readouterr().out == f"{run / 'report.html'}: open it in a browser\n"
    text = (run / "report.html").read_text(encoding="utf-8")
    assert '<html lang="zh">' in text
    assert "radio" not in text


def test_several_runs_and_exports_are_on_one_page(tmp_path):
    runs = [made_run(tmp_path / name, with_ledger=False) for name in ("a", "b")]
    (tmp_path / "out").mkdir()
    (tmp_path / "out/export.json").write_text(json.dumps({"to": "llama", "dtype": "float16"}))
    main([*map(str, runs), "--out", str(tmp_path / "both.html"), "--export", str(tmp_path / "out")])
    text = (tmp_path / "both.html").read_text(encoding="utf-8")
    assert "Side by side" in text
    assert "llama" in text


def test_suspects_are_written_instead_of_a_page(tmp_path, capsys):
    run = made_run(tmp_path / "run")
    main([str(run), "--suspects", str(tmp_path / "out.jsonl")])
    assert "6 training pairs that the policy ranks the other way" in capsys.readouterr().out
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 6
    assert not (run / "report.html").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["RUN", "--out", "no/folder/r.html"], "the report cannot be written"),
        (["NONE"], "not the folder of a run"),
        (["RUN", "--lang", "de"], "invalid choice: 'de'"),
        (["RUN", "RUN", "--suspects", "out.jsonl"], "--suspects is about one RUN"),
        (["RUN", "--suspects", "out.jsonl"], "no ledger; train with --ledger 1"),
        ([], "the following arguments are required: RUN"),
    ],
)
def test_errors_are_one_line(tmp_path, monkeypatch, capsys, flags, message):
    monkeypatch.chdir(tmp_path)
    made_run(tmp_path / "RUN", with_ledger=False)
    with pytest.raises(SystemExit) as ended:
        main(flags)
    assert ended.value.code == 1
    printed = capsys.readouterr().err
    assert message in printed
    assert printed.count("\n") == 1


def test_a_run_reports_at_its_end(tmp_path):
    run = made_run(tmp_path / "run")
    assert report_finished(run) == f"report: {run / 'report.html'}"
    assert "好12" in (run / "report.html").read_text(encoding="utf-8")


def test_what_would_take_long_is_left_to_the_script(tmp_path, monkeypatch):
    run = made_run(tmp_path / "run")
    monkeypatch.setattr(command, "_QUICK_ROWS", 10)
    said = report_finished(run)
    assert said.endswith(f"without the texts of pairs; with them: python launch/report.py {run}")
    assert "好12" not in (run / "report.html").read_text(encoding="utf-8")
    (run / "report.html").unlink()
    monkeypatch.setattr(command, "_QUICK_LEDGER", 10)
    assert report_finished(run) == f"report: python launch/report.py {run}"
    assert not (run / "report.html").exists()


@pytest.mark.parametrize("damage", ["run.json", "ledger/000001.parquet"])
def test_a_report_that_fails_does_not_fail_the_run(tmp_path, damage):
    run = made_run(tmp_path / "run")
    (run / damage).write_text("x")
    said = report_finished(run)
    assert said.startswith("NO REPORT: DataError: ")
    assert said.endswith(f"python launch/report.py {run}")


def test_without_margins_there_is_a_page_all_the_same(tmp_path, monkeypatch):
    run = made_run(tmp_path / "run")
    monkeypatch.setattr(command, "page", lambda runs, languages: "".join(run.files.name for run in runs))
    report_finished(run)
    assert (run / "report.html").read_text() == "run"
