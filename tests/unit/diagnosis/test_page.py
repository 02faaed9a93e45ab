"""The page is one whole file, in one language or in two, and nothing that a file says is markup."""

from __future__ import annotations

from html.parser import HTMLParser

from minimind.diagnosis.page import page
from minimind.diagnosis.reported import open_reported
from tests.unit.diagnosis.made_runs import made_run

VOID = {"meta", "br", "hr", "input"}


class Checker(HTMLParser):
    """Collects elements, and fails where one is closed that is not open."""

    def __init__(self):
        super().__init__()
        self.open, self.seen, self.links = [], [], []

    def handle_starttag(self, tag, attrs):
        self.seen.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def checked(text: str) -> Checker:
    checker = Checker()
    checker.feed(text)
    assert checker.open == []
    return checker


def test_a_page_is_well_formed_and_needs_nothing_else(tmp_path):
    text = page([open_reported(made_run(tmp_path / "run"))])
    found = checked(text)
    assert found.links == []
    assert not {"script", "img", "link", "i"} & set(found.seen) - {"i"}
    assert found.seen.count("main") == 2
    assert "<script" not in text
    assert "url(" not in text


def test_both_languages_have_a_switch_and_one_has_none(tmp_path):
    run = open_reported(made_run(tmp_path / "run"))
    both, chinese = page([run]), page([run], ["zh"])
    assert both.count('type="radio"') == 2
    assert both.count('checked=""') == 1
    assert '<main lang="en">' in both
    assert '<main lang="zh">' in both
    assert "radio" not in chinese
    assert '<html lang="zh">' in chinese
    assert "训练之后：run" in chinese
    assert "After training" not in chinese


def test_the_guard_comes_before_the_curves(tmp_path):
    text = page([open_reported(made_run(tmp_path / "run"))], ["en"])
    titles = ["What the guard has found", "Curves", "Margin against length", "Accuracy by group", "Single pairs"]
    titles += ["Answers before and after", "What exports kept", "Speed and cost", "What ran"]
    places = [text.index(f"<h2>{title}</h2>") for title in titles]
    assert places == sorted(places)


def test_several_runs_are_side_by_side(tmp_path):
    runs = [open_reported(made_run(tmp_path / name, beta=beta)) for name, beta in (("a", 0.1), ("b", 0.3))]
    text = page(runs, ["en"])
    checked(text)
    assert "<h2>Side by side</h2>" in text
    assert "<h2>What ran: a</h2>" in text
    assert "<h2>What ran: b</h2>" in text
    assert text.count("<h2>Curves</h2>") == 1


def test_a_bare_run_has_a_page_too(tmp_path):
    (tmp_path / "run.json").write_text("{}")
    checked(page([open_reported(tmp_path)]))
