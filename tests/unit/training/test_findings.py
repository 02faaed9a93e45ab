"""findings.jsonl: a line a finding, which a resumed run neither loses nor repeats."""

from __future__ import annotations

import json

import numpy as np

from minimind.diagnosis.curves import Finding
from minimind.diagnosis.run_files import FINDINGS_FILE
from minimind.training.events import Found
from minimind.training.findings import FindingsFile


def found(rule, step=4, name=""):
    finding = Finding(rule=rule, step=3, text="太长", remedy="try", form="longer", values={"equal": np.float64(0.5)})
    return Found(step=step, name=name, finding=finding)


def test_a_finding_is_a_line(tmp_path):
    file = FindingsFile(tmp_path, enabled=True)
    assert file.add("zh/length", found("length", name="zh")) == []
    line = (tmp_path / FINDINGS_FILE).read_text(encoding="utf-8")
    assert json.loads(line) == {
        "step": 4, "set": "zh", "rule": "length", "at": 3, "text": "太长", "remedy": "try", "form": "longer",
        "values": {"equal": 0.5}, "key": "zh/length",
    }  # fmt: skip
    assert "太长" in line


def test_only_what_was_found_up_to_the_checkpoint_is_kept(tmp_path):
    file = FindingsFile(tmp_path, enabled=True)
    assert (file.keep(4), file.keys()) == ([], set())
    assert not (tmp_path / FINDINGS_FILE).exists()
    for rule, step in {"a": 3, "b": 5, "c": 4}.items():
        file.add(f"/{rule}", found(f"{rule}\u2028", step))
    with (tmp_path / FINDINGS_FILE).open("a") as lines:
        lines.write('{"step": 9, "key": "/a')  # cut off by a kill
    file.keep(4)
    assert file.keys() == {"/a", "/c"}
    lines = (tmp_path / FINDINGS_FILE).read_text(encoding="utf-8").split("\n")
    assert [json.loads(line)["rule"] for line in lines[:-1]] == ["a\u2028", "c\u2028"]


def test_other_ranks_write_nothing(tmp_path):
    FindingsFile(tmp_path, enabled=False).add("/a", found("a"))
    assert not (tmp_path / FINDINGS_FILE).exists()


def test_a_file_that_cannot_be_written_is_said_once(tmp_path):
    (tmp_path / FINDINGS_FILE).mkdir()
    file = FindingsFile(tmp_path, enabled=True)
    news = [*file.add("/a", found("a")), *file.add("/b", found("b"))]
    assert len(news) == 1
    assert news[0].startswith("NOT LOGGED: findings.jsonl: ")
